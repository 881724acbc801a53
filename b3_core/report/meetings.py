"""Who meets whom in batches: every ordered pair of different rows of a batch, looked at.

    rows of batches -> scores by the teacher, ranks -> Meetings: sums a batch, counts a row, bins

Legend: N rows of the dataset, D width of a vector, M ranks, S batches, B rows of a batch,
R rows looked at (R = S B), X bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from b3_core.labels import LabelRanks
from b3_core.report.stored import Array, Sides

Rows = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

#: A partner is likely a false negative where the teacher scores it at least this share of the
#: row's own positive: positive-aware mining's rule (NV-Retriever, arXiv 2407.15831).
LIKELY = 0.95
_AT = (0.90, LIKELY, 1.00)

BINS = 200  # of scores, over [-1, 1]
_QUANTILES = (0.1, 0.5, 0.9, 0.99)
_NOT_RANKED = -1
_SMALL = (
    1 << 23
)  # multiplications; BLAS's threads would wait for one another, for long if others run


class Sight(Protocol):
    """Knows at which rank a row of a batch stands for another."""

    first: int
    stop: int

    def ranks(self, row_B: Rows) -> Rows:
        """Return the rank of column j for row i: int32 (B, B); -1 where it is not ranked."""


class RankSight:
    """Windows of ranks [p, p + m)."""

    def __init__(self, neighbour_NM: Array, *, p: int, m: int) -> None:
        self.first, self.stop = p, p + m
        self._row_NM = neighbour_NM
        self._slot_N = np.full(len(neighbour_NM), -1, np.int32)

    def ranks(self, row_B: Rows) -> Rows:
        """Find the batch's rows among the ranks of each of them."""
        self._slot_N[row_B] = np.arange(len(row_B), dtype=np.int32)
        other_BM = np.asarray(self._row_NM[row_B])
        slot_BM = np.where(other_BM >= 0, self._slot_N[other_BM], -1)
        self._slot_N[row_B] = -1
        rank_BB = np.full((len(row_B), len(row_B)), _NOT_RANKED, np.int32)
        at_X, rank_X = np.nonzero(slot_BM >= 0)
        rank_BB[at_X, slot_BM[at_X, rank_X]] = rank_X
        return rank_BB


class LabelSight:
    """Of a classification: rows of labels that a row is near are its window; none is too hard."""

    first, stop = 0, 1

    def __init__(self, ranks: LabelRanks) -> None:
        self._ranks = ranks

    def ranks(self, row_B: Rows) -> Rows:
        """Return 0 where the column's label is near the row."""
        near_BB = self._ranks.near(row_B)[:, self._ranks.label_N[row_B]]
        return np.where(near_BB, 0, _NOT_RANKED).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Looked:
    """What is known of the rows, so far as it is there."""

    sides: Sides | None
    sight: Sight | None
    group_N: npt.NDArray[np.int32] | None

    def scores(self, row_B: Rows) -> Numbers | None:
        """Return the teacher's score of query i and positive j: float64 (B, B)."""
        if self.sides is None:
            return None
        query_BD, positive_BD = (np.asarray(side[row_B], np.float32) for side in self.sides)
        small = len(row_B) * positive_BD.size < _SMALL
        score_BB = (
            np.einsum("id,jd->ij", query_BD, positive_BD) if small else query_BD @ positive_BD.T
        )
        return np.asarray(score_BB, np.float64)

    def others(self, row_B: Rows) -> npt.NDArray[np.bool_]:
        """Mark the pairs that count as negatives: different rows of different groups, (B, B)."""
        group_B = np.arange(len(row_B)) if self.group_N is None else self.group_N[row_B]
        differ_BB: npt.NDArray[np.bool_] = group_B[:, None] != group_B
        return differ_BB


@dataclass(frozen=True, eq=False)
class Meetings:
    """The pairs of some batches: negatives only, so neither the own row nor the own group."""

    epoch_S: npt.NDArray[np.int16]
    pairs_S: Counts
    inside_S: Counts
    """Pairs of one community."""
    sums: Mapping[str, Numbers]
    """Over the pairs of each batch, S: ``score``, ``inside_score``, ``likely``, ``judged``."""
    score_X: Counts
    """Pairs by score."""
    own_R: Numbers
    """The teacher's score of each row's own positive; NaN without vectors."""
    hardest_R: Numbers
    """The highest score among the other rows of the batch; NaN where there is none."""
    counts: Mapping[str, npt.NDArray[np.int32]]
    """Partners a row, R: ``window``, ``too_hard``, ``inside_window``, ``inside_too_hard``,
    ``likely``, and ``likely_at_...`` for other thresholds."""
    scored: bool
    ranked: bool

    @property
    def rows(self) -> int:
        """R."""
        return len(self.own_R)


def meet(
    row_SB: Rows, community_SB: Rows, looked: Looked, epoch_S: npt.NDArray[np.int16] | None = None
) -> Meetings:
    """Look at every ordered pair of some batches of one dataset.

    Parameters
    ----------
    row_SB
        Rows of each batch.
    community_SB
        Their communities; -1 where drawn at random.
    epoch_S
        Epoch of each batch; 0 if absent.
    """
    batches, size = row_SB.shape
    names = ["window", "too_hard", "inside_window", "inside_too_hard"]
    names += [_likely_name(at) for at in _AT]
    counts = {name: np.zeros((batches, size), np.int32) for name in names}
    sums = {name: np.zeros(batches) for name in ("score", "inside_score", "likely", "judged")}
    pairs_S, inside_S = np.zeros((2, batches), np.int64)
    score_X = np.zeros(BINS, np.int64)
    own_SB, hardest_SB = np.full((2, batches, size), np.nan)
    for s, row_B in enumerate(row_SB):
        other_BB = looked.others(row_B)
        community_B = community_SB[s]
        inside_BB = (community_B[:, None] == community_B) & (community_B >= 0) & other_BB
        pairs_S[s], inside_S[s] = other_BB.sum(), inside_BB.sum()
        found_BB = {} if looked.sight is None else _ranked(looked.sight, row_B, other_BB)
        score_BB = looked.scores(row_B)
        if score_BB is not None:
            own_B = score_BB.diagonal()
            judged_BB = other_BB & (own_B > 0)[:, None]
            found_BB |= {
                _likely_name(at): judged_BB & (score_BB >= at * own_B[:, None]) for at in _AT
            }
            score_X += _binned(score_BB[other_BB])
            sums["score"][s] = score_BB[other_BB].sum()
            sums["inside_score"][s] = score_BB[inside_BB].sum()
            sums["judged"][s] = judged_BB.sum()
            sums["likely"][s] = found_BB[_likely_name(LIKELY)].sum()
            own_SB[s] = own_B
            hardest_B = np.where(other_BB, score_BB, -np.inf).max(axis=1)
            hardest_SB[s] = np.where(np.isinf(hardest_B), np.nan, hardest_B)
        for name, marked_BB in found_BB.items():
            counts[name][s] = marked_BB.sum(axis=1)
            if f"inside_{name}" in counts:
                counts[f"inside_{name}"][s] = (marked_BB & inside_BB).sum(axis=1)
    return Meetings(
        epoch_S=np.zeros(batches, np.int16) if epoch_S is None else epoch_S,
        pairs_S=pairs_S,
        inside_S=inside_S,
        sums=sums,
        score_X=score_X,
        own_R=own_SB.ravel(),
        hardest_R=hardest_SB.ravel(),
        counts={name: count_SB.ravel() for name, count_SB in counts.items()},
        scored=looked.sides is not None,
        ranked=looked.sight is not None,
    )


def figures(met: Meetings) -> dict[str, Any]:
    """Return what a report says of meetings, as plain JSON.

    Returns
    -------
    dict
        ``batches``, ``rows`` and ``pairs`` looked at. With vectors ``similarity`` of all pairs and
        ``hardest`` of each row (mean, quantiles, share in each of the bins), ``inside_similarity``
        of pairs of one community, and ``false_negatives``. With ranks ``window`` and ``too_hard``
        partners a row: means, quantiles, how many rows have 0, 1, 2, ..., and the means in the
        row's own community.
    """
    found: dict[str, Any] = {
        "batches": len(met.pairs_S),
        "rows": met.rows,
        "pairs": int(met.pairs_S.sum()),
    }
    pairs, inside = met.pairs_S.sum(), met.inside_S.sum()
    if met.scored and pairs:
        found["similarity"] = {
            "mean": float(met.sums["score"].sum() / pairs),
            **_binned_quantiles(met.score_X),
            "shares": _shares(met.score_X),
        }
        hardest_R = met.hardest_R[~np.isnan(met.hardest_R)]
        found["hardest"] = {
            "mean": float(hardest_R.mean()),
            **{f"q{round(100 * q)}": float(np.quantile(hardest_R, q)) for q in _QUANTILES},
            "shares": _shares(_binned(hardest_R)),
        }
        found["inside_similarity"] = (
            float(met.sums["inside_score"].sum() / inside) if inside else None
        )
        found["false_negatives"] = _false_negatives(met)
    if met.ranked and met.rows:
        for name in ("window", "too_hard"):
            found[name] = _partners(met.counts[name])
            found[name]["inside_mean"] = (
                float(met.counts[f"inside_{name}"].mean()) if inside else None
            )
    return found


def by_epoch(met: Meetings) -> list[dict[str, Any]]:
    """Return the means of each epoch: ``similarity``, ``window``, ``too_hard``, ``likely``."""
    rows = []
    each = met.rows // max(len(met.epoch_S), 1)
    for epoch in np.unique(met.epoch_S):
        mine_S = met.epoch_S == epoch
        mine_R = np.repeat(mine_S, each)
        pairs, judged = met.pairs_S[mine_S].sum(), met.sums["judged"][mine_S].sum()
        rows.append(
            {
                "epoch": int(epoch),
                "batches_looked_at": int(mine_S.sum()),
                "similarity": float(met.sums["score"][mine_S].sum() / pairs)
                if met.scored and pairs
                else None,
                "likely": float(met.sums["likely"][mine_S].sum() / judged) if judged else None,
                **{
                    name: float(met.counts[name][mine_R].mean()) if met.ranked else None
                    for name in ("window", "too_hard")
                },
            }
        )
    return rows


def _ranked(
    sight: Sight, row_B: Rows, other_BB: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.bool_]]:
    rank_BB = sight.ranks(row_B)
    window_BB = (rank_BB >= sight.first) & (rank_BB < sight.stop)
    hard_BB = (rank_BB >= 0) & (rank_BB < sight.first)
    return {"window": window_BB & other_BB, "too_hard": hard_BB & other_BB}


def _false_negatives(met: Meetings) -> dict[str, Any]:
    judged = met.sums["judged"].sum()
    judged_R = met.own_R > 0
    likely_R = met.counts[_likely_name(LIKELY)][judged_R]
    return {
        "threshold": LIKELY,
        "share_of_pairs": float(likely_R.sum() / judged) if judged else None,
        "share_of_rows": float((likely_R > 0).mean()) if judged else None,
        "partners_a_row": float(likely_R.mean()) if judged else None,
        "rows_judged": float(judged_R.mean()),
        "share_of_pairs_at": {
            f"{at:.2f}": float(met.counts[_likely_name(at)].sum() / judged) if judged else None
            for at in _AT
        },
    }


def _partners(count_R: npt.NDArray[np.int32]) -> dict[str, Any]:
    return {
        "mean": float(count_R.mean()),
        **{f"q{round(100 * q)}": float(np.quantile(count_R, q)) for q in _QUANTILES},
        "none": float((count_R == 0).mean()),
        "rows_with": np.bincount(count_R).tolist(),
    }


def _likely_name(at: float) -> str:
    return "likely" if at == LIKELY else f"likely_at_{at:.2f}"


def _binned(score: Array) -> Counts:
    place = np.clip((score + 1) * (BINS / 2), 0, BINS - 1).astype(np.int64)
    return np.bincount(place.ravel(), minlength=BINS)


def _binned_quantiles(score_X: Counts) -> dict[str, float]:
    """Return quantiles to the width of a bin: the middle of the bin that holds each."""
    below_X = np.cumsum(score_X) / score_X.sum()
    return {
        f"q{round(100 * q)}": float((np.searchsorted(below_X, q) + 0.5) * 2 / BINS - 1)
        for q in _QUANTILES
    }


def _shares(score_X: Counts) -> list[float]:
    total = max(int(score_X.sum()), 1)
    return [round(float(count / total), 6) for count in score_X]
