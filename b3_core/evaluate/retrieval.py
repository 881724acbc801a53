"""Where the positive of each held-out query ranks among all entries of a corpus.

rows -> distinct: each query once, each positive once -> rank_of_positive -> EvalReport

Legend: N rows, Q queries, C corpus entries, D width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from b3_core.artifacts import Artifact, Draft
from b3_core.errors import InputError
from b3_core.evaluate.compare import Task
from b3_core.evaluate.tiles import Parts, ranks_of_best
from b3_core.groups import codes, identities

VERSION = 3

#: As :func:`retrieval_metrics` names them, in the order they are shown in.
METRICS = ("hit@1", "hit@5", "hit@10", "mrr", "ndcg@10")
_ARRAYS = ("ranks", "rows", "units")


def distinct(rows: pa.Table, side: str) -> npt.NDArray[np.int64]:
    """Find the first row of each side of each group, in order.

    Rows that repeat a query, or a positive as every row of a class does, are one query and one
    entry of the corpus: else a query would count as often as it has positives, and a wrong entry
    would be ahead of the right one as often as it is there.

    Parameters
    ----------
    rows
        As :class:`b3_core.pairs.PairTable` has them.
    side
        ``query`` or ``positive``.
    """
    code_N = codes(identities(rows, side)).astype(np.int64)
    group_N = rows["group"].to_numpy().astype(np.int64)
    pair_N = code_N * (group_N.max(initial=-1) + 1) + group_N
    return np.sort(np.unique(pair_N, return_index=True)[1])


def rank_of_positive(
    query_QD: npt.NDArray[np.float32],
    corpus_CD: npt.NDArray[np.float32],
    *,
    group_Q: npt.NDArray[np.int32],
    group_C: npt.NDArray[np.int32],
    block: int = 1 << 23,
) -> npt.NDArray[np.int64]:
    """Rank the best positive of each query among the corpus, by inner product.

    A query's positives are the corpus entries of its group; they do not compete with one another.
    A competitor is ahead of the positive if its score is higher, or equal and it stands earlier in
    the corpus. Scores are exact: see :mod:`b3_core.evaluate.tiles`.

    Parameters
    ----------
    query_QD, corpus_CD
        Vectors; of unit length where cosine is meant.
    group_Q, group_C
        Their groups.
    block
        Scores held at a time, at 4 bytes each or less; the Q x C matrix never is.

    Returns
    -------
    numpy.ndarray
        int64, Q; 1 is first.

    Raises
    ------
    InputError
        A vector is not finite, or a query has no positive in the corpus.
    """
    by_group_C = np.argsort(group_C, kind="stable")  # stable: a group's entries in corpus order
    first_Q, end_Q = (
        np.searchsorted(group_C[by_group_C], group_Q, side=side) for side in ("left", "right")
    )
    alone = np.flatnonzero(first_Q == end_Q)
    if alone.size:
        raise InputError(
            f"query {alone[0]} has no positive in the corpus ({alone.size} such queries)",
            expected=f"an entry of group {group_Q[alone[0]]}",
        )
    return ranks_of_best(query_QD, corpus_CD, Parts(first_Q, end_Q, by_group_C), block=block)


def retrieval_metrics(rank_Q: npt.NDArray[np.int64]) -> dict[str, float]:
    """Average the usual metrics over queries whose best positive is their one relevant entry.

    - ``hit@k``: share of queries with rank <= k;
    - ``mrr``: mean of 1 / rank, however large the rank;
    - ``ndcg@10``: mean of 1 / log2(1 + rank) where rank <= 10, else 0 (Järvelin and Kekäläinen
      2002, whose ideal gain is 1 with one relevant entry).

    Raises
    ------
    ValueError
        There are no ranks.
    """
    if not len(rank_Q):
        raise ValueError("no ranks to average")
    gain_Q = np.where(rank_Q <= 10, 1 / np.log2(1 + rank_Q), 0)
    return {
        **{f"hit@{k}": float((rank_Q <= k).mean()) for k in (1, 5, 10)},
        "mrr": float((1 / rank_Q).mean()),
        "ndcg@10": float(gain_Q.mean()),
    }


@dataclass(frozen=True, eq=False)
class EvalReport:
    """What one student did on one task.

    Raises
    ------
    ValueError
        A rank is not among the corpus, there are none, or of another number than there are rows or
        units.
    """

    task: str
    rank_Q: npt.NDArray[np.int64]
    """Rank of each query's best positive; 1 is first."""
    row_Q: npt.NDArray[np.int64]
    """The first held-out row with each query."""
    unit_Q: npt.NDArray[np.integer]
    """What a bootstrap draws together: queries of a group, which were held out together."""
    corpus: int
    """Entries that each query was ranked against."""
    dataset: str
    """Whose rows they are; a task may be its reverse."""
    fingerprints: Mapping[str, str]
    """What was evaluated: student, manifest, pairs."""

    def __post_init__(self) -> None:
        if not len(self.rank_Q) or not 1 <= self.rank_Q.min() <= self.rank_Q.max() <= self.corpus:
            raise ValueError(f"ranks {self.rank_Q} are not ranks among {self.corpus} entries")
        if not len(self.rank_Q) == len(self.row_Q) == len(self.unit_Q):
            raise ValueError(
                f"{len(self.rank_Q)} ranks, {len(self.row_Q)} rows, {len(self.unit_Q)} units"
            )

    @property
    def metrics(self) -> dict[str, float]:
        """As :func:`retrieval_metrics` defines them."""
        return retrieval_metrics(self.rank_Q)

    @property
    def drawn(self) -> Task:
        """What a bootstrap draws together."""
        return Task(self.unit_Q.astype(np.int64), self.dataset)

    def save(self, draft: Draft, name: str) -> None:
        """Write ``<name>/report.json`` for people, and ``<name>/ranks.npy`` and others with it."""
        report = {
            "task": self.task,
            "dataset": self.dataset,
            "queries": len(self.rank_Q),
            "corpus": self.corpus,
            "metrics": self.metrics,
            "fingerprints": dict(self.fingerprints),
        }
        draft.write_json(f"{name}/report.json", report)
        for file, value_Q in zip(_ARRAYS, (self.rank_Q, self.row_Q, self.unit_Q), strict=True):
            np.save(draft.path(f"{name}/{file}.npy"), value_Q)

    @classmethod
    def load(cls, artifact: Artifact, name: str) -> Self:
        """Read a report back."""
        report = json.loads(artifact.path(f"{name}/report.json").read_bytes())
        rank_Q, row_Q, unit_Q = (
            np.load(artifact.path(f"{name}/{file}.npy"), allow_pickle=False) for file in _ARRAYS
        )
        return cls(
            report["task"],
            rank_Q,
            row_Q,
            unit_Q,
            report["corpus"],
            report["dataset"],
            report["fingerprints"],
        )
