"""Memory and disk of each kind of stage, by what its arrays hold.

    peak = what the largest timing's process had + bytes a row x rows beyond those

Bytes a row follow from the types of :mod:`b3_core`'s tables; each is counted as often as it is held
at once. Models, libraries and blocks of fixed size are in the peak that was measured.

Legend: N rows, D width of a vector, W ranks kept, m window.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from b3_core.forecast.jobs import Job
from b3_core.forecast.rates import Rate

MB = 1 << 20


@dataclass(frozen=True)
class Widths:
    """What a row of each table is made of."""

    dim: int
    ranks: int
    window: int
    text_bytes: float
    """Of both sides of a row, and its key."""


def row_bytes(kind: str, widths: Widths) -> float:
    """Return how much memory one more row takes while a stage of this kind is made."""
    vectors, text = 8 * widths.dim, widths.text_bytes
    return {
        # Read, keyed, grouped, split: texts are held some four times.
        "pairs": 4 * text,
        "shards": text,  # every worker has the table; shards themselves are of fixed size
        # Shards and what they are joined to as float32, and float16 on its way to disk.
        "embeddings": 2.5 * vectors,
        # Vectors in float16 and float32; ranks and scores, sorted once more to be checked.
        "ranks": 1.5 * vectors + 14 * widths.ranks,
        # Ranks, and edges of the window in both directions while they are counted.
        "graph": 8 * widths.ranks + 24 * widths.window,
        "communities": 40 * widths.window + 8 * widths.ranks,  # igraph's copy of the edges
        "manifest": text + 8 * widths.ranks,
        "student": 2 * text,  # texts, and their tokens
        "evaluation": text + 1.5 * vectors,
        "results": 0.0,
    }[kind]


def rows_in(job: Job) -> float:
    """Return the rows that memory and disk of a job grow with."""
    return job.work.get("rows", 0.0)


def peak_mb(job: Job, rate: Rate, widths: Widths, *, rows: float) -> float:
    """Return the most that the process of a job holds, in MB.

    Parameters
    ----------
    rows
        Training rows of the job's datasets.
    """
    seen = rate.at.get("rows", 0.0)
    rows = min(rows, job.held)
    more = max(0.0, rows - seen) if "rows" in job.work else rows
    return rate.peak_mb + row_bytes(job.kind, widths) * more / MB


def disk_bytes(job: Job, rate: Rate) -> float:
    """Return what a job's files take: in proportion to its rows; a model is as large as it is."""
    seen = rate.at.get("rows", 0.0)
    return rate.bytes * (rows_in(job) / seen if seen and rows_in(job) else 1.0)


def text_bytes(sample_bytes: Mapping[str, tuple[int, int]]) -> float:
    """Return the mean bytes of a row's texts, with what a key and ids take.

    Parameters
    ----------
    sample_bytes
        Dataset -> (bytes of its sample in memory, rows of it).
    """
    total = sum(size for size, _ in sample_bytes.values())
    return total / max(1, sum(rows for _, rows in sample_bytes.values())) + 64
