"""What communities or batches are worth, before they are trained on.

Figures are means over rows; beside each stands what it would be if the same sizes were filled at
random. They describe: hardness has an optimum, so none of them is a target.

Legend: N rows, D width of a vector, M ranks, C communities or batches.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from b3_core.batches import BatchPlan
from b3_core.communities import Labels, Partition
from b3_core.edges import count_mutual
from b3_core.neighbours import RankTable

Figures = npt.NDArray[np.float64]

_CHUNK = 1 << 16  # rows looked at together


def describe(
    made: Partition | BatchPlan,
    ranks: RankTable,
    *,
    p: int,
    m: int,
    group_N: npt.NDArray[np.int32] | None = None,
    dataset: int = 0,
) -> dict[str, float]:
    """Count the partners of a row: the rows it shares a community or a batch with.

    Parameters
    ----------
    made
        Communities, or all epochs' batches: partners are of the same dataset.
    ranks, p, m
        The window is ranks [p, p + m).
    group_N
        Groups of the rows, if their meeting is to be counted too.
    dataset
        Which dataset of a plan ``ranks`` belongs to.

    Returns
    -------
    dict
        ``window``: partners in the row's window; ``too_hard``: partners at rank < p; ``mutual``:
        partners in each other's window; ``same_group``: partners of the row's group. Means over
        rows (and epochs), each with its expectation ``random_...`` for the same sizes.
    """
    row_NM = ranks.neighbour_NM

    def count(label_N: Labels) -> dict[str, int]:
        """Count ordered pairs of rows with the same label; -1 is no label."""
        counts = {
            "window": _together(label_N, row_NM[:, p : p + m]),
            "too_hard": _together(label_N, row_NM[:, :p]),
            "mutual": count_mutual(row_NM[:, p : p + m], label_N)[1],
        }
        if group_N is not None:
            held_N = label_N >= 0
            both_X = label_N[held_N].astype(np.int64) << 32 | group_N[held_N]
            counts["same_group"] = _pairs(both_X)
        return counts

    inside: Counter[str] = Counter()
    placed = meetings = 0
    for label_N in _labels(made, len(row_NM), dataset):
        inside.update(count(label_N))
        placed += int((label_N >= 0).sum())
        meetings += _pairs(label_N[label_N >= 0])
    # If places are drawn, any two given rows meet with the same probability.
    chance = meetings / (len(row_NM) * (len(row_NM) - 1))
    total = count(np.zeros(len(row_NM), np.int32))
    expected = {f"random_{name}": total[name] * chance / placed for name in total}
    return {name: inside[name] / placed for name in total} | expected


def similarity(
    partition: Partition,
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
) -> dict[str, float]:
    """Measure how hard partners are: the teacher's inner product of query i and positive j.

    Returns
    -------
    dict
        ``similarity``: mean over ordered pairs i != j in one community; ``spread``: standard
        deviation of the communities' own means. ``random_similarity`` is the mean over all pairs,
        ``random_spread`` that of one seeded draw of communities of the same sizes.
    """
    own_N = np.einsum("nd,nd->n", query_ND, positive_ND, dtype=np.float64)

    def measure(label_N: Labels) -> tuple[Figures, Figures]:
        """Return the sums over ordered pairs of each community, and the numbers of pairs."""
        # The sum over pairs of <q_i, p_j> is <sum of q_i, sum of p_j>, less the terms i = j.
        query_CD, positive_CD = _sums(label_N, query_ND), _sums(label_N, positive_ND)
        product_C = np.einsum("cd,cd->c", query_CD, positive_CD)
        size_C = np.bincount(label_N)
        paired_C = size_C > 1
        sum_C = product_C - np.bincount(label_N, weights=own_N)
        return sum_C[paired_C], (size_C * (size_C - 1.0))[paired_C]

    sum_C, pairs_C = measure(partition.label_N)
    drawn_C, _ = measure(np.random.default_rng(0).permutation(partition.label_N))
    all_1, pairs_1 = measure(np.zeros_like(partition.label_N))
    return {
        "similarity": float(sum_C.sum() / pairs_C.sum()),
        "spread": float((sum_C / pairs_C).std()),
        "random_similarity": float(all_1[0] / pairs_1[0]),
        "random_spread": float((drawn_C / pairs_C).std()),
    }


def _labels(made: Partition | BatchPlan, rows: int, dataset: int) -> Iterator[Labels]:
    """Return the community of every row; of a plan, the batch in each epoch, -1 if left out."""
    if isinstance(made, Partition):
        yield made.label_N
        return
    for epoch in np.unique(made.epoch_S):
        slot_SB = made.slots_of(dataset, made.epoch_S == epoch)
        batch_S = np.cumsum(slot_SB.any(axis=1)) - 1  # those that hold rows of the dataset
        label_N = np.full(rows, -1, np.int32)
        label_N[made.row_SB[slot_SB]] = batch_S[np.nonzero(slot_SB)[0]]
        yield label_N


def _together(label_N: Labels, row_NM: npt.NDArray[np.int32]) -> int:
    """Count the ranked rows that have the label of the row that ranks them."""
    count = 0
    for start in range(0, len(label_N), _CHUNK):
        row_XM, label_X1 = row_NM[start : start + _CHUNK], label_N[start : start + _CHUNK, None]
        same_XM = (label_N[row_XM] == label_X1) & (row_XM >= 0) & (label_X1 >= 0)
        count += int(same_XM.sum())
    return count


def _pairs(code_X: npt.NDArray[np.integer]) -> int:
    """Count the ordered pairs of different positions with the same code."""
    _, size = np.unique(code_X, return_counts=True)
    return int((size * (size - 1)).sum())


def _sums(label_N: Labels, vector_ND: npt.NDArray[np.float32]) -> Figures:
    """Add up the vectors of each community in float64: (C, D)."""
    return np.stack([np.bincount(label_N, weights=column_N) for column_N in vector_ND.T], axis=1)
