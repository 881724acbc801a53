"""From timings to rates: seconds = fixed + sum of rate x amount over the terms of the work.

What is assumed of growth is which terms a kind of stage has (:mod:`b3_core.forecast.jobs`): ranks
grow with rows and with pairs of rows, everything else with rows, steps or texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import nnls

from b3_core.forecast.jobs import Job, Work


@dataclass(frozen=True)
class Timing:
    """What making one artifact took."""

    kind: str
    key: str
    work: Work
    seconds: float
    cold: bool = False
    """Whether it was the first of its kind in its process: imports and loading are in it."""
    peak_mb: float = 0.0
    bytes: int = 0
    """Of its files."""
    source: str = "probe"


@dataclass(frozen=True)
class Rate:
    """How long a kind of stage takes."""

    of: Mapping[str, float]
    """Term -> seconds a unit; ``once`` is what each artifact takes whatever its size."""
    start: float = 0.0
    """Seconds more for the first one in a process."""
    source: str = "probe"
    peak_mb: float = 0.0
    """Of the process, in the largest timing; :attr:`at` is how large that was."""
    bytes: float = 0.0
    """Of the files of the largest."""
    at: Work = field(default_factory=dict)

    def seconds(self, work: Work, *, cold: bool = False) -> float:
        """Return what this much work takes."""
        return (self.start if cold else 0.0) + sum(
            self.of.get(term, 0.0) * amount for term, amount in work.items()
        )


def fit(timings: Sequence[Timing]) -> Rate:
    """Fit one rate to timings of the same kind, none negative.

    Relative errors are what is made small, so that the largest timing does not decide alone. With
    as many timings as terms, or terms that grow alike, what cannot be told apart goes to the term
    that grows with the work: a forecast is rather too long than too short.

    Returns
    -------
    Rate
        Its ``start`` is by how much cold timings exceed what the warm ones say.

    Raises
    ------
    ValueError
        There are no timings.
    """
    if not timings:
        raise ValueError("nothing was timed")
    warm = [each for each in timings if not each.cold] or list(timings)
    terms = list(dict.fromkeys(term for each in timings for term in each.work))
    grows = [term for term in terms if term != "once"] or terms
    sizes = {tuple(sorted(each.work.items())) for each in warm}
    used = terms if len(sizes) >= len(terms) else grows[-1:] if len(sizes) < 2 else grows
    work_XT = np.array([[each.work.get(term, 0.0) for term in used] for each in warm])
    second_X = np.array([max(each.seconds, 1e-4) for each in warm])
    scale_T = np.maximum(work_XT.max(axis=0), 1e-12)
    found_T, _ = nnls(work_XT / scale_T / second_X[:, None], np.ones(len(warm)))
    of = dict(zip(used, (found_T / scale_T).tolist(), strict=True))
    # Parts that were timed apart made no files.
    whole = [each for each in timings if each.bytes] or list(timings)
    largest = max(whole, key=lambda each: sum(each.work.values()))
    rate = Rate(
        of,
        source=largest.source,
        peak_mb=max(each.peak_mb for each in timings),
        bytes=float(largest.bytes),
        at=largest.work,
    )
    over = [each.seconds - rate.seconds(each.work) for each in timings if each.cold]
    known = over and len(warm) < len(timings)
    return replace(rate, start=max(0.0, sum(over) / len(over)) if known else 0.0)


def fit_all(timings: Iterable[Timing]) -> dict[str, Rate]:
    """Fit a rate to each key."""
    by_key: dict[str, list[Timing]] = {}
    for each in timings:
        by_key.setdefault(each.key, []).append(each)
    return {key: fit(found) for key, found in by_key.items()}


def rate_for(job: Job, rates: Mapping[str, Rate], kinds: Mapping[str, str]) -> Rate | None:
    """Return the rate of a job: of its own key, else of another of its kind.

    Parameters
    ----------
    kinds
        Key -> kind, of all rates.
    """
    if job.key in rates:
        return rates[job.key]
    alike = [key for key in rates if kinds.get(key) == job.kind]
    return rates[alike[0]] if alike else None
