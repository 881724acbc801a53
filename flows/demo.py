"""The demo: code search on the Python packages installed beside this one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from b3_core import corpus
from b3_core.artifacts import Draft
from b3_core.config import PipelineSpec, parse_config
from b3_core.progress import Progress
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

DATASET = "python-code"


@dataclass(frozen=True)
class DemoCorpus(Stage):
    """Docstring-to-body pairs of the installed packages, held out by package."""

    pairs: int
    source: str
    name: ClassVar[str] = "corpus"
    version: ClassVar[int] = corpus.VERSION

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return DATASET

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"pairs": self.pairs}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"packages": self.source}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        read = corpus.read_corpus(self.pairs, progress=progress)
        for part in ("train", "validation", "test"):
            table = getattr(read, part)
            pq.write_table(table, draft.path(f"{part}.parquet"), compression="zstd")
            draft.counts[part] = len(table)


def demo_spec(store: ArtifactStore, made: Stage, settings: Mapping[str, Any]) -> PipelineSpec:
    """Return the configuration of the demo on a corpus that was read.

    Parameters
    ----------
    settings
        ``part`` to evaluate on, and any key of CONFIG.
    """
    artifact = store.get(made.address)
    changed = dict(settings)
    part = changed.pop("part")
    dataset = {
        "name": DATASET,
        "uri": f"{artifact.uri}/{artifact.files['train.parquet'].path}",
        "eval_uri": f"{artifact.uri}/{artifact.files[f'{part}.parquet'].path}",
        "query": "query",
        "positive": "positive",
    }
    config = {
        "name": "demo",
        "datasets": [dataset],
        # Of 0.05 and 0.1, what did better on the validation part, for both random and b3.
        "train": {"temperature": 0.1},
        "store": {"root": store.root},
        **changed,
    }
    return parse_config(config, base=Path.cwd())
