"""Mining in cells at sizes that no corpus here has: what it takes, and what it loses.

    vectors of a real corpus -> Drawn, N rows like them -> mined in cells, each part recorded
                                                        -> by exact ranks, where there is time
                                                        -> in one piece, where that fits
    partners of sampled rows, by exact ranks            -> what cells lose
    seconds of the parts                                -> exponent, and ``simulate``

*Drawn* rows: each is a real one moved towards some of its nearest ones, or away from them, by
normal amounts. From 5,000 rows of code, 20,000 drawn ones have the scores of the 20,000 real ones
at ranks 0, 10, 30 and 130 within .03, .01, .005 and .003 with ``SIGMA``. They are not real: what
is said of them holds for data whose neighbourhoods look like that corpus's.

Legend: N rows, V rows of the real corpus, D width, X rows of a block, R sampled rows.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from b3_core import probing, search
from b3_core.artifacts import Address, Draft
from b3_core.cells import LIST_ROWS, Sides
from b3_core.communities import Partition
from b3_core.config import MiningSpec
from b3_core.dataset_stage import DatasetStage
from b3_core.pairs import SCHEMA, PairTable
from b3_core.progress import Progress
from b3_core.seams import SEAM_ROUNDS, TOGETHER
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

SIGMA = 0.35
_NEAREST = 16
_MIXED = 3
_BLOCK = 1 << 15
_SAMPLE = 2000

#: How rows are mined: in cells as they are; in cells by exact ranks; in one piece.
WAYS = "cells", "exact", "whole"


@dataclass(frozen=True)
class DrawnPairs(Stage):
    """Rows whose texts are their numbers, each a group of its own."""

    rows: int
    name: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return f"drawn-{self.rows}"

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"drawn": self.rows}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        row_N = pa.array(np.arange(self.rows))
        text_N = pc.cast(row_N, pa.string())
        columns = [row_N, text_N, text_N, text_N, pc.cast(row_N, pa.int32())]
        table = PairTable(self.dataset, pa.table(columns, schema=SCHEMA))
        table.save(draft, "train")
        PairTable(self.dataset, SCHEMA.empty_table()).save(draft, "heldout")
        draft.counts |= {
            "rows": self.rows,
            "heldout": 0,
            "digest": table.digest,
            "heldout_digest": "none",
            "places": table.places,
        }


@dataclass(frozen=True)
class DrawnVectors(DatasetStage):
    """Vectors like those of a real corpus, as many as there are rows."""

    real: Address
    name: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 1

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"sigma": SIGMA}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {
            "weights": self.real.fingerprint,
            "pairs": self.ref.digest,
        }

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        made = store.get(self.real)
        real = (
            made.array("query.npy").astype(np.float32),
            made.array("positive.npy").astype(np.float32),
        )
        near_VX = nearest_rows(real)
        rng = np.random.default_rng(0)
        shape = self.ref.rows, real[0].shape[1]
        whole = [
            np.lib.format.open_memmap(draft.path(f"{name}.npy"), "w+", np.float16, shape)
            for name in ("query", "positive")
        ]
        for start in range(0, self.ref.rows, _BLOCK):
            stop = min(start + _BLOCK, self.ref.rows)
            for whole_ND, drawn_XD in zip(
                whole, draw(real, near_VX, stop - start, rng=rng), strict=True
            ):
                whole_ND[start:stop] = drawn_XD
            progress(stop, self.ref.rows)
        draft.counts |= {"rows": self.ref.rows, "width": shape[1]}


def nearest_rows(real: Sides) -> npt.NDArray[np.int64]:
    """Return the rows nearest to each by query + positive, itself not among them: (V, 16)."""
    both_VD = _unit(real[0] + real[1])
    return search.nearest(both_VD, both_VD, _NEAREST + 1)[:, 1:]


def draw(
    real: Sides,
    near_VX: npt.NDArray[np.int64],
    rows: int,
    *,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw rows like real ones; query and positive are moved by the same amounts."""
    row_X = rng.integers(len(near_VX), size=rows)
    other_XM = near_VX[row_X[:, None], rng.integers(near_VX.shape[1], size=(rows, _MIXED))]
    by_XM1 = rng.normal(0.0, SIGMA, size=(rows, _MIXED, 1)).astype(np.float32)
    query_XD, positive_XD = (
        _unit(side_VD[row_X] + (by_XM1 * (side_VD[other_XM] - side_VD[row_X][:, None])).sum(axis=1))
        for side_VD in real
    )
    return query_XD, positive_XD


def partners(
    partition: Partition,
    row_R: npt.NDArray[np.intp],
    exact_RM: npt.NDArray[np.int64],
    *,
    p: int,
) -> dict[str, float]:
    """Count the partners of sampled rows by exact ranks: in the window, and too hard, a row."""
    label_N = partition.label_N
    same_RM = (label_N[exact_RM] == label_N[row_R][:, None]) & (exact_RM >= 0)
    return {
        "window": float(same_RM[:, p:].sum(axis=1).mean()),
        "too_hard": float(same_RM[:, :p].sum(axis=1).mean()),
    }


def sample_exactly(
    sides: Sides, *, group_N: npt.NDArray[np.int32], width: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Draw some rows and rank all positives for them: rows R and ranks (R, width)."""
    rng = np.random.default_rng(1)
    row_R = np.sort(rng.choice(len(group_N), min(_SAMPLE, len(group_N)), replace=False))
    return row_R, probing.exact_ranks(sides, row_R, group_N=group_N, width=width)


def stage_rows(parts: Mapping[str, Sequence[Stage]], store: ArtifactStore) -> list[dict[str, Any]]:
    """Read what each stage took: parts, core-seconds, those of the longest, and memory of one."""
    found = []
    for name, stages in parts.items():
        records = [store.get(stage.address).record for stage in stages]
        found.append(
            {
                "stage": name,
                "parts": len(records),
                "seconds": round(sum(record["seconds"] for record in records), 2),
                "longest": round(max(record["seconds"] for record in records), 2),
                "peak_mb": max(record["peak_mb"] for record in records),
            }
        )
    return found


def seconds_a_list(width: int) -> float:
    """Time how long one core takes to compare one query with the mean of one list more."""
    rng = np.random.default_rng(0)
    query_XD, mean_LD = rng.standard_normal((2, 1 << 12, width), np.float32)
    took: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        search.nearest(query_XD, mean_LD, 384)
        took.append(time.perf_counter() - began)
    return float(min(took)) / len(query_XD) / len(mean_LD)


def exponent(points: Mapping[int, float]) -> float | None:
    """Fit ``a N ** b`` to seconds by rows, by least squares of logarithms; None for one size."""
    if len(points) < 2:
        return None
    size_P, value_P = np.log(np.array(sorted(points.items()), np.float64)).T
    return round(float(np.polyfit(size_P, value_P, 1)[0]), 3)


def summary(
    sizes: Sequence[Mapping[str, Any]],
    mining: MiningSpec,
    *,
    at: int,
    workers: Sequence[int],
    list_seconds: float,
) -> dict[str, Any]:
    """Compare sizes: ``kept`` partners, ``exponent`` of core-seconds in rows, ``extrapolated``."""
    ways = [(size, way) for size in sizes for way in WAYS if way in size]
    total = {
        size["rows"]: sum(stage["seconds"] for stage in size["cells"]["stages"]) for size in sizes
    }
    largest = max(sizes, key=lambda size: size["rows"])
    cell_rows = mining.cell_rows
    assert cell_rows is not None
    return {
        "kept": [
            {"rows": size["rows"], "mined": way}
            | {name: round(size[way][name], 3) for name in ("window", "too_hard")}
            for size, way in ways
        ],
        "exponent": exponent(total),
        "extrapolated": [
            simulate(
                largest["cells"]["stages"],
                rows=largest["rows"],
                at=at,
                cell_rows=cell_rows,
                workers=each,
                list_seconds=list_seconds,
            )
            for each in workers
        ],
    }


#: What ``simulate`` takes for granted.
ASSUMPTIONS = (
    "a cell costs what it costs in the largest run here; each core works as one of this machine's",
    "each query is compared with the means of all N / 256 lists, at a rate that is timed here",
    "k-means and the placing of rows in lists grow with N to the power of 1.5, in one process",
    "a seam costs what two cells of a block do, unless there are seams here; each round waits for "
    "the one before",
    "every worker has a part to make: one flow keeps 32 parts going, more workers need more flows",
    "what puts parts together (ranks, labels, quality) grows with N and runs on one core",
    "no time for the network: each worker reads its lists at the speed of this machine's disk",
)


def simulate(
    measured: Sequence[Mapping[str, Any]],
    *,
    rows: int,
    at: int,
    cell_rows: int,
    workers: int,
    list_seconds: float,
) -> dict[str, Any]:
    """Extrapolate what was measured at ``rows`` to ``at`` rows on some workers of one core.

    Parameters
    ----------
    measured
        Rows of :func:`stage_rows`.
    list_seconds
        Of :func:`seconds_a_list`.

    Returns
    -------
    dict
        ``hours`` by stage and in all, ``worker_mb``: the most that one part had resident, to which
        come 30 bytes a row.
    """
    cells, grown = math.ceil(at / cell_rows), at / rows
    lists = (at - rows) / LIST_ROWS
    total: dict[str, float] = {}
    for row in measured:
        name, each = row["stage"], row["seconds"] / row["parts"]
        if name == "cell-ranks":
            total[name] = math.ceil(cells / workers) * (each + cell_rows * lists * list_seconds)
        elif name in ("block-communities", "seam"):
            total[name] = math.ceil(row["parts"] * grown / workers) * each
        else:
            total[name] = row["seconds"] * grown ** (1.5 if name == "cells" else 1)
        if name == "block-communities" and cells > TOGETHER:
            one_seam = 2 * row["seconds"] * cell_rows / rows
            total["seam"] = SEAM_ROUNDS * math.ceil(cells / 2 / workers) * one_seam
    hours = {name: round(seconds / 3600, 3) for name, seconds in total.items()}
    # A block there has as many cells as it may; a block here may have fewer.
    fuller = {
        "block-communities": min(TOGETHER, cells) / min(TOGETHER, math.ceil(rows / cell_rows))
    }
    parts = [
        row["peak_mb"] * fuller.get(row["stage"], 1.0)
        for row in measured
        if row["stage"] in ("cell-ranks", "block-communities", "seam")
    ]
    return {
        "rows": at,
        "workers": workers,
        "hours": hours | {"all": round(sum(hours.values()), 3)},
        "worker_mb": round(max(parts, default=0.0) + 30 * (at - rows) / (1 << 20)),
        "assumptions": list(ASSUMPTIONS),
    }


def _unit(vector_XD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length_X1 = np.linalg.norm(vector_XD, axis=1, keepdims=True)
    return np.asarray(vector_XD / np.maximum(length_X1, np.float32(1e-6)))
