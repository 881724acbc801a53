"""One dataset of a manifest: its figures, beside random batches and the paper's.

    plan, what the store holds -> batches to look at -> meetings, edges, duplicates, teacher

Legend: N rows of the dataset, S batches, B rows of a batch, R rows looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from b3_core.artifacts import Artifact
from b3_core.errors import B3Error, reason
from b3_core.inputs import PACKED, Shelf
from b3_core.manifest import Manifest
from b3_core.pairs import cautions, limits_read
from b3_core.report import others
from b3_core.report.advice import advise
from b3_core.report.meetings import LabelSight, Looked, RankSight, Sight, by_epoch, figures, meet
from b3_core.report.repeats import Texts, kept, read_texts, repeats
from b3_core.report.samples import Album, choose, read_batch
from b3_core.report.stored import Upstream
from b3_core.stage import generator


@dataclass(frozen=True)
class Options:
    """How much is looked at."""

    rows: int = 65_536
    """Slots of a dataset whose pairs are looked at; all, where there are no more."""
    batches: int = 8
    """Batches to read."""
    seed: int = 0
    """Of what is sampled."""
    make_paper: bool = True
    """Partition by the paper's recipe where the store holds no manifest that is."""
    media: Mapping[str, str] | None = None
    """Where images and videos of each dataset are, if its rows name them by path."""
    hourly: float | None = None
    """What an hour of the machine that mines costs."""


class Dataset:
    """One dataset of a manifest, looked at once."""

    def __init__(
        self,
        artifact: Artifact,
        manifest: Manifest,
        upstream: Upstream,
        *,
        number: int,
        options: Options,
    ) -> None:
        self.artifact, self.manifest, self.upstream = artifact, manifest, upstream
        self.number, self.options = number, options
        self.head, self.plan = manifest.head, manifest.plan
        self.mine_S = np.flatnonzero(self.plan.dataset_S == number)
        self.mined_S = np.any(self.plan.community_SB[self.mine_S] >= 0, axis=1)

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a stream of its own for each purpose."""
        return generator(self.options.seed, f"report {self.upstream.name} {purpose}")

    @property
    def alike(self) -> bool:
        """Say whether positives stand for queries, so that each is the nearest to itself."""
        return bool(self.upstream.entry["teacher"].get("reads") == "positive")

    def describe(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the dataset's figures, and its batches to read."""
        up, head = self.upstream, self.head
        many = -(-self.options.batches // len(head["datasets"]))
        shown = choose(self.plan, self.number, many=many, rng=self.rng("shown"))
        texts = self._texts(shown)
        looked = Looked(up.sides, self._sight(), None if texts is None else texts.group_N)
        quality = dict(up.entry["quality"][head["variant_of_epoch"][-1]])
        epochs = len(head["variant_of_epoch"])
        left = int((self.plan.left_out[:, 1] == self.number).sum())
        found: dict[str, Any] = {
            "name": up.name,
            "rows": up.rows,
            "labelled": up.labelled,
            "p": up.entry["p"],
            "m": up.entry["m"],
            "k": head["k"],
            "partitioner": head["settings"]["mining"]["partitioner"],
            "batches_all": len(self.mine_S),
            "left_out": left,
            "left_out_share": left / (epochs * up.rows),
            "moved": quality.get("moved"),
            "moved_share": quality["moved"] / up.rows if "moved" in quality else None,
            "communities": quality,
            "teacher": self._teacher(),
            "edges": self._edges(),
            "cautions": {} if up.pairs is None else cautions(up.pairs.counts, labelled=up.labelled),
            "repeats": None if texts is None else repeats(self.plan.row_SB[self.mine_S], texts),
            **self._met(looked),
        }
        found["advice"] = advise(found)
        return found, self._read(shown, looked, texts)

    def _texts(self, shown: list[int]) -> Texts | None:
        if self.upstream.pairs is None:
            return None
        try:
            texts = read_texts(self.upstream.pairs, self.plan.row_SB[shown].ravel().tolist())
            if len(texts.group_N) != self.upstream.rows:
                raise ValueError(f"{len(texts.group_N)} rows, not {self.upstream.rows}")
        except (ValueError, B3Error) as error:
            self.upstream.lack("pairs", "no duplicates are counted and no batch can be read", error)
            return None
        return texts

    def _sight(self) -> Sight | None:
        if self.upstream.labelled:
            labels = self.upstream.labels
            return None if labels is None else LabelSight(labels)
        ranks = self.upstream.ranks
        if ranks is None:
            return None
        return RankSight(ranks, p=self.upstream.entry["p"], m=self.upstream.entry["m"])

    def _met(self, looked: Looked) -> dict[str, Any]:
        """Look at batches of the plan, at random ones and at the paper's."""
        epoch_S = self.plan.epoch_S[self.mine_S]
        budget = max(self.options.rows // self.head["batch_size"], 1)
        picked_S = self._spread(epoch_S, budget)
        at_S, mined_S = self.mine_S[picked_S], self.mined_S[picked_S]
        every = meet(
            self.plan.row_SB[at_S], self.plan.community_SB[at_S], looked, epoch_S[picked_S]
        )
        shown_S = at_S[mined_S] if mined_S.any() else at_S
        mined = every
        if 0 < mined_S.sum() < len(mined_S):
            mined = meet(self.plan.row_SB[shown_S], self.plan.community_SB[shown_S], looked)
        size, limit = self.head["batch_size"], max(budget // 2, 1)
        drawn = others.drawn(self.upstream.rows, size, batches=limit, rng=self.rng("random"))
        paper = others.paper(
            self.artifact,
            self.head,
            self.upstream,
            rng=self.rng("paper") if self.options.make_paper else None,
        )
        sources = {"random": drawn.says, "paper": paper if isinstance(paper, str) else paper.says}
        compared: dict[str, Any] = {
            "mined": figures(mined),
            "random": figures(meet(drawn.row_SB, drawn.community_SB, looked)),
            "paper": None,
        }
        if not isinstance(paper, str):
            few = self.rng("paper batches").permutation(len(paper.row_SB))[:limit]
            compared["paper"] = figures(meet(paper.row_SB[few], paper.community_SB[few], looked))
        return {
            "batches": compared,
            "sources": {
                "mined": "batches of this manifest with mined communities"
                if mined_S.any()
                else "batches of this manifest, all drawn at random",
                **sources,
                "teacher": "reads positives alone, so a score is of two positives"
                if self.alike
                else "scores a query and another row's positive",
            },
            "exact": len(picked_S) == len(self.mine_S),
            "epochs": self._epochs(by_epoch(every), epoch_S),
        }

    def _spread(self, epoch_S: Any, budget: int) -> Any:
        """Choose batches from all epochs alike; all of them, where that is not too many."""
        if len(epoch_S) <= budget:
            return np.arange(len(epoch_S))
        rng, epochs = self.rng("batches"), np.unique(epoch_S)
        each = max(budget // len(epochs), 1)
        return np.sort(
            np.concatenate(
                [
                    rng.choice(of_S, min(each, len(of_S)), replace=False)
                    for of_S in (np.flatnonzero(epoch_S == epoch) for epoch in epochs)
                ]
            )
        )

    def _epochs(self, rows: list[dict[str, Any]], epoch_S: Any) -> list[dict[str, Any]]:
        for row in rows:
            at_S = self.mine_S[epoch_S == row["epoch"]]
            row["batches"] = len(at_S)
            row["random_share"] = float((self.plan.community_SB[at_S] < 0).mean())
        return rows

    def _teacher(self) -> dict[str, Any]:
        """Say who the teacher is, and how well it finds a row's own positive."""
        found: dict[str, Any] = {"settings": dict(self.upstream.entry["teacher"])}
        for artifact in self.upstream.find("ranks"):
            if "window_recall" in artifact.counts:
                found["window_recall"] = artifact.counts["window_recall"]
                found["cells"] = artifact.counts.get("cells", 1)
        sides, ranks = self.upstream.sides, self.upstream.ranks
        if sides is None or ranks is None or not ranks.shape[1] or self.alike:
            return found
        rows, limit = self.upstream.rows, self.options.rows
        some_R = np.arange(rows)
        if rows > limit:
            some_R = np.sort(self.rng("teacher").choice(rows, limit, replace=False))
        best_R = np.asarray(ranks[some_R, 0])
        some_R, best_R = some_R[best_R >= 0], best_R[best_R >= 0]
        query_RD, own_RD, best_RD = (
            np.asarray(side[row_R], np.float32)
            for side, row_R in zip((*sides, sides[1]), (some_R, some_R, best_R), strict=True)
        )
        own_R, first_R = (
            np.einsum("rd,rd->r", query_RD, other_RD) for other_RD in (own_RD, best_RD)
        )
        return {**found, "hit@1": float((own_R >= first_R).mean()), "own": float(own_R.mean())}

    def _edges(self) -> dict[str, Any]:
        """Say what the window graph is like, and how much of it batches keep."""
        up, size = self.upstream, self.head["batch_size"]
        communities = up.communities(-1)
        graph = None if communities is None else up.graph_of(communities)
        if communities is None or graph is None:
            up.lack("graph or communities", "no edges are counted")
            return {}
        found: dict[str, Any] = {
            "edges": graph.counts["edges"],
            "too_hard": graph.counts["too_hard"],
            "isolated": graph.counts["isolated"] / up.rows,
            "random_in_communities": (self.head["k"] - 1) / max(up.rows - 1, 1),
            "random_in_batches": (size - 1) / max(up.rows - 1, 1),
        }
        edges = up.edges(graph)
        if edges is None:
            return found
        try:
            label_N = np.load(communities.path("label.npy"), allow_pickle=False)
            found["in_communities"] = kept(edges, label_N)
        except (ValueError, B3Error) as error:
            up.lack("communities", f"no edges are counted in them ({reason(error)})")
        last = self.mine_S[self.mined_S] if self.mined_S.any() else self.mine_S
        if not len(last):  # all of its rows are left out
            return found
        epoch = self.plan.epoch_S[last].max()
        row_SB = self.plan.row_SB[self.mine_S][self.plan.epoch_S[self.mine_S] == epoch]
        batch_N = np.full(up.rows, -1, np.int32)
        batch_N[row_SB] = np.arange(len(row_SB), dtype=np.int32)[:, None]
        found["in_batches"] = kept(edges, batch_N)
        return found

    def _read(self, shown: list[int], looked: Looked, texts: Texts | None) -> list[dict[str, Any]]:
        up = self.upstream
        if texts is None or up.pairs is None:
            return []
        root = (self.options.media or {}).get(up.name)
        packed = None
        try:
            packed = up.pairs.path(PACKED) if PACKED in up.pairs.files else None
        except B3Error as error:
            up.lack("packed media", "no thumbnails are shown", error)
        shelf = Shelf(root, packed, limits_read(up.pairs)) if packed or root else None
        album = Album(shelf)
        if album.shelf is None and any("query_medium" in row for row in texts.shown.values()):
            up.gone.append(
                f"{up.name}: images and videos lie outside the store: no thumbnails are shown; "
                f"name their folder with --media {up.name}=FOLDER."
            )
        read = [
            {"dataset": up.name, "labelled": up.labelled}
            | read_batch(batch, self.plan, looked, texts=texts, album=album)
            for batch in shown
        ]
        up.gone += [f"{up.name}: {fault}." for fault in album.faults]
        return read
