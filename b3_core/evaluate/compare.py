"""Arms compared: what differs by more than the luck of seeds and queries.

Legend: S seeds, Q queries, U units, R resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

VERSION = 3
_BLOCK = 1 << 22  # weights of units held at a time


@dataclass(frozen=True)
class Interval:
    """A mean difference with its percentile interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Task:
    """The queries of one task, and which of them a resample draws together."""

    unit_Q: npt.NDArray[np.int64]
    """Queries that are no independent draws, such as those of one group, have the same unit."""
    stratum: str
    """Tasks of the same stratum, such as both directions of a dataset, have the same units."""


def independent(*sizes: int) -> list[Task]:
    """Return tasks of so many queries, each query a unit of its own."""
    return [Task(np.arange(size), f"task {number}") for number, size in enumerate(sizes)]


def paired_bootstrap(
    a_SQ: npt.NDArray[np.float64],
    b_SQ: npt.NDArray[np.float64],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    tasks: Sequence[Task] = (),
) -> Interval:
    """Bootstrap the mean of ``a - b`` over seeds and queries at once.

    A seed moves all queries of an arm together, and a query all seeds, so each resample draws
    seeds and queries independently, both with replacement (Owen 2007, "The pigeonhole bootstrap").
    A score of one arm always stays with the other arm's of the same seed and query. Queries of one
    unit are drawn together, a mean being that of the queries drawn.

    Resampling S values shrinks their variance by (S - 1) / S, which is much where S is three, so
    what seeds move is scaled by the root of S / (S - 1) (Rao and Wu 1988, "Resampling inference
    with complex survey data"). With a single seed the interval tells about queries only.

    Parameters
    ----------
    a_SQ, b_SQ
        A score of each seed and query, such as reciprocal ranks; the same seeds and queries.
    tasks
        The tasks of the queries, in their order: the mean is over tasks then, whatever their size,
        and units are drawn within each stratum. By default all are of one, each its own unit.

    Raises
    ------
    ValueError
        The shapes differ or are empty, or tasks have another number of queries or none.
    """
    if a_SQ.shape != b_SQ.shape or a_SQ.ndim != 2 or a_SQ.size == 0:
        raise ValueError(f"shapes {a_SQ.shape} and {b_SQ.shape} are not both (seeds, queries)")
    difference_SQ = np.asarray(a_SQ, np.float64) - b_SQ
    tasks = tasks or independent(difference_SQ.shape[1])
    sizes = [len(task.unit_Q) for task in tasks]
    if sum(sizes) != difference_SQ.shape[1] or min(sizes) < 1:
        raise ValueError(f"tasks of {sizes} queries, of {difference_SQ.shape[1]} in all")
    parts = np.split(difference_SQ, np.cumsum(sizes)[:-1], axis=1)
    mean_R = np.concatenate(list(_resampled(_strata(parts, tasks), rng, resamples)))
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([value_SQ.mean() for value_SQ in parts]))
    return Interval(mean, float(low), float(high))


@dataclass(eq=False)
class _Stratum:
    """Units that are drawn together, and what each of its tasks has of them."""

    units: int
    sum_TSU: list[npt.NDArray[np.float64]] = field(default_factory=list)
    count_TU: list[npt.NDArray[np.int64]] = field(default_factory=list)


def _strata(parts: Sequence[npt.NDArray[np.float64]], tasks: Sequence[Task]) -> list[_Stratum]:
    """Sum the scores of each unit."""
    strata: dict[str, _Stratum] = {}
    for name in dict.fromkeys(task.stratum for task in tasks):
        mine = [
            (part, task) for part, task in zip(parts, tasks, strict=True) if task.stratum == name
        ]
        unit, code = np.unique(
            np.concatenate([task.unit_Q for _, task in mine]), return_inverse=True
        )
        found = strata[name] = _Stratum(len(unit))
        ends = np.cumsum([len(task.unit_Q) for _, task in mine])[:-1]
        for (value_SQ, _), code_Q in zip(mine, np.split(code, ends), strict=True):
            found.sum_TSU.append(
                np.stack([np.bincount(code_Q, row_Q, len(unit)) for row_Q in value_SQ])
            )
            found.count_TU.append(np.bincount(code_Q, minlength=len(unit)))
    return list(strata.values())


def _resampled(
    strata: Sequence[_Stratum], rng: np.random.Generator, resamples: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the resampled means in blocks: how often each is drawn is its weight."""
    seeds = len(strata[0].sum_TSU[0])
    tasks = sum(len(stratum.sum_TSU) for stratum in strata)
    step = max(1, _BLOCK // sum(stratum.units for stratum in strata))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        weight_RS = 1 + np.sqrt(seeds / max(seeds - 1, 1)) * (drawn_RS - 1)
        total_R = np.zeros(size)
        for stratum in strata:
            units = stratum.units
            weight_RU = rng.multinomial(units, np.full(units, 1 / units), size=size)
            for sum_SU, count_U in zip(stratum.sum_TSU, stratum.count_TU, strict=True):
                sum_R = ((weight_RS @ sum_SU) * weight_RU).sum(axis=1) / seeds
                count_R = weight_RU @ count_U
                # A task of few units may have none in a resample: its mean stands for it.
                none_R = count_R == 0
                sum_R[none_R] = sum_SU.sum() / seeds / count_U.sum()
                total_R += sum_R / np.maximum(count_R, 1)
        yield total_R / tasks


def arms_table(
    metrics: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[dict[str, str | int | float | None]]:
    """Average each arm's metrics over its runs.

    Parameters
    ----------
    metrics
        For each arm the metrics of its runs, one a seed.

    Returns
    -------
    list of dict
        For each arm ``arm``, ``runs``, and every metric's mean with its standard deviation over
        runs (n - 1 in the denominator) beside it as ``<metric>_spread``; None for a single run.
    """
    table = []
    for arm, runs in metrics.items():
        row: dict[str, str | int | float | None] = {"arm": arm, "runs": len(runs)}
        for name in runs[0]:
            values = [run[name] for run in runs]
            row[name] = float(np.mean(values))
            row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        table.append(row)
    return table


def sentences(differences: Mapping[str, Mapping[str, float]], metric: str = "mrr") -> list[str]:
    """Say each difference with its interval: wherever a person reads it, in these words."""
    called = {"mrr": "MRR"}.get(metric, metric)
    return [
        f"{pair}: {called} {found['mean']:+.4f}, 95 % interval [{found['low']:+.4f}, "
        f"{found['high']:+.4f}] ({_of(found['seeds'])})"
        for pair, found in differences.items()
    ]


def _of(seeds: float) -> str:
    if seeds == 1:
        return "paired bootstrap over queries alone: the luck of one seed is not in it"
    return "paired bootstrap over seeds and queries"
