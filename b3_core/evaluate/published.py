"""Figures that were published, to stand beside measured ones.

Of B3 (arXiv 2505.11293), at batch size 1,024 unless said otherwise; in percent, as printed. A
figure that is not known is not here.
"""

from dataclasses import dataclass
from typing import Literal

_PAPER = "arXiv 2505.11293"


@dataclass(frozen=True)
class Published:
    """One row."""

    model: str
    benchmark: str
    """As :data:`b3_core.evaluate.benchmark.BENCHMARKS` names it."""
    figures: dict[str, float]
    """hit@1 in percent: of MMEB's ``all``, or by direction."""
    of: Literal["model", "family"] = "model"
    """``family``: published for the model family, not for that training recipe."""
    source: str = _PAPER


PUBLISHED: tuple[Published, ...] = (
    Published("B3++ 2B", "mmeb", {"all": 68.10}),
    Published("B3 2B", "mmeb", {"all": 67.87}),
    Published("2B, random batches, 5 hard negatives", "mmeb", {"all": 67.14}),
    Published("2B, random batches", "mmeb", {"all": 65.35}),
    Published("2B, random batches, no positive prompts", "mmeb", {"all": 62.61}),
    Published("B3++ 7B", "mmeb", {"all": 72.0}),
    Published("B3++ 2B", "flickr30k", {"t2i": 82.8, "i2t": 94.9}),
    Published("B3++ 2B", "coco", {"t2i": 59.0, "i2t": 73.6}),
    Published("B3++ 2B", "urban1k", {"t2i": 96.3, "i2t": 96.1}),
    Published("model family", "msrvtt", {"t2v": 46.7, "v2t": 48.7}, of="family"),
    Published("model family", "didemo", {"t2v": 38.7, "v2t": 43.3}, of="family"),
    Published("model family", "msvd", {"t2v": 53.8, "v2t": 83.1}, of="family"),
    Published("model family", "vatex", {"t2v": 57.3, "v2t": 83.1}, of="family"),
    Published("model family", "activitynet", {"t2v": 33.8, "v2t": 39.2}, of="family"),
)


def published_for(benchmark: str) -> list[Published]:
    """Return the rows of one benchmark, best first as listed."""
    return [row for row in PUBLISHED if row.benchmark == benchmark]
