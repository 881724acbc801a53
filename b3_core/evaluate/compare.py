"""Arms compared: what differs by more than the luck of seeds and queries.

Legend: S seeds, Q queries, R resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

VERSION = 2
_BLOCK = 1 << 22  # query weights held at a time


@dataclass(frozen=True)
class Interval:
    """A mean difference with its percentile interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    a_SQ: npt.NDArray[np.float64],
    b_SQ: npt.NDArray[np.float64],
    *,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
    tasks: Sequence[int] = (),
) -> Interval:
    """Bootstrap the mean of ``a - b`` over seeds and queries at once.

    A seed moves all queries of an arm together, and a query all seeds, so each resample draws
    seeds and queries independently, both with replacement (Owen 2007, "The pigeonhole bootstrap").
    A score of one arm always stays with the other arm's of the same seed and query.

    With a single seed the interval tells about queries only; with few seeds it is too narrow, for
    resampling S values shrinks their variance by (S - 1) / S.

    Parameters
    ----------
    a_SQ, b_SQ
        A score of each seed and query, such as reciprocal ranks; the same seeds and queries.
    tasks
        How many queries each task has, in their order: the mean is over tasks then, whatever their
        size, and queries are drawn within each. By default all are of one.

    Raises
    ------
    ValueError
        The shapes differ or are empty, or tasks have another number of queries or none.
    """
    if a_SQ.shape != b_SQ.shape or a_SQ.ndim != 2 or a_SQ.size == 0:
        raise ValueError(f"shapes {a_SQ.shape} and {b_SQ.shape} are not both (seeds, queries)")
    difference_SQ = np.asarray(a_SQ, np.float64) - b_SQ
    sizes = tuple(tasks) or difference_SQ.shape[1:]
    if sum(sizes) != difference_SQ.shape[1] or min(sizes) < 1:
        raise ValueError(f"tasks of {sizes} queries, of {difference_SQ.shape[1]} in all")
    task_TSQ = np.split(difference_SQ, np.cumsum(sizes)[:-1], axis=1)
    mean_R = np.concatenate(list(_resampled(task_TSQ, rng, resamples)))
    low, high = np.quantile(mean_R, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([value_SQ.mean() for value_SQ in task_TSQ]))
    return Interval(mean, float(low), float(high))


def _resampled(
    task_TSQ: Sequence[npt.NDArray[np.float64]], rng: np.random.Generator, resamples: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the resampled means in blocks: how often each is drawn is its weight."""
    seeds = len(task_TSQ[0])
    step = max(1, _BLOCK // sum(value_SQ.shape[1] for value_SQ in task_TSQ))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weight_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        total_R = np.zeros(size)
        for value_SQ in task_TSQ:
            queries = value_SQ.shape[1]
            weight_RQ = rng.multinomial(queries, np.full(queries, 1 / queries), size=size)
            total_R += ((weight_RS @ value_SQ) * weight_RQ).sum(axis=1) / value_SQ.size
        yield total_R / len(task_TSQ)


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
        f"{found['high']:+.4f}] (paired bootstrap over seeds and queries)"
        for pair, found in differences.items()
    ]
