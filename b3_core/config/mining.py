"""How rows become communities, and communities batches."""

from typing import Literal, Self

from pydantic import Field, model_validator

from b3_core.config.base import Spec

#: False-negative cut-off p by task (arXiv 2505.11293; VQA answers are short and nearly repeat).
#: Classification ranks labels instead of rows, and knows no p.
DEFAULT_P: dict[str, int] = {"retrieval": 30, "grounding": 30, "vqa": 70, "classification": 0}

_SLIVER = 1e-6  # of an epoch: sums of fractions such as 1/3 are not exact


class MiningSpec(Spec):
    """From ranks to communities of exactly ``k`` rows."""

    p: int | None = Field(
        None,
        ge=0,
        description="First ranks dropped as probable false negatives; by task if absent.",
    )
    m: int = Field(
        100,
        ge=1,
        description="Ranks kept after the first p: the window. For classification, how many of the "
        "rows that it may be linked to are drawn for a row.",
    )
    search: Literal["exact", "ivf", "hnsw"] = Field(
        "exact",
        description="How ranks are found; ivf and hnsw miss some and pay from about 200,000 rows. "
        "The share of the window that they found is measured and recorded.",
    )
    cell_rows: int | None = Field(
        None,
        ge=1,
        description="A dataset with more rows than this is cut into cells of so many rows that are "
        "close together, each ranked by itself, and up to 32 of them linked and partitioned "
        "together, on any number of machines; in one piece if absent. In cells a few ranks are "
        "missed, and the share that was found is recorded.",
    )
    # Of 300,000 drawn rows windows are found to .940 with 128 lists of 512 rows, .963 with 256 of
    # 256, .979 with 256 of 512 or 384 of 256: small lists, and many, find most of what is read.
    cell_lists: int = Field(
        384,
        ge=1,
        description="In cells: of the lists of some 256 rows that the dataset is cut into, how "
        "many each query looks into. More find more of the window and take longer; as many as "
        "there are find all of it.",
    )
    label_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Classification: the share of the other labels, nearest first, whose rows a "
        "row may be linked to, if they in turn are near its label.",
    )
    k: int = Field(32, ge=2, description="Rows in a community.")
    graph: Literal["mutual", "union"] = Field(
        "mutual", description="Edges in both windows only, or in either (mutual ones weigh 2)."
    )
    weights: Literal["count", "score"] = Field(
        "count",
        description="Weight of an edge: 1 for each direction it is there in, or the teacher's "
        "score of that direction, scaled to mean 1.",
    )
    partitioner: Literal[
        "leiden", "leidenalg", "metis", "metis-paper", "kaminpar", "rcm", "random"
    ] = Field("leiden", description="How communities are found; metis-paper is the published way.")
    resolution: float | None = Field(
        None, gt=0, description="CPM resolution of Leiden; chosen from the graph if absent."
    )
    tolerance: float | None = Field(
        None, gt=0, le=1, description="Slack of METIS's part sizes; the best of several if absent."
    )
    swap_rounds: int = Field(
        20,
        ge=0,
        description="Most passes of the pair-swap refinement; 0 keeps the packed communities.",
    )
    repulsion: float = Field(
        0.0, ge=0, description="Weight (lambda) of keeping rows of rank < p out of the community."
    )
    evenness: float = Field(
        1.0,
        ge=0,
        le=1,
        description="How much less an edge is worth in a community that has many: 0 not at all, "
        "1 nothing at twice the mean.",
    )

    @model_validator(mode="after")
    def _one_search(self) -> Self:
        if self.cell_rows is not None and self.search != "exact":
            raise ValueError(f"search: {self.search} beside cell_rows, which searches in lists")
        return self

    def variant(self, phase: "Phase") -> Self:
        """Return the mining of one phase of a curriculum."""
        own = phase.model_dump(include={"k", "repulsion"}, exclude_none=True)
        return self.model_copy(update=own)

    def variants(self, batches: "BatchSpec") -> "list[Self]":
        """Return the minings that a curriculum needs, each once, in the order of their use.

        A curriculum without any mined phase still has one: it says which rows there are.
        """
        mined = [phase for phase in batches.curriculum if phase.random_share < 1]
        found = [self.variant(phase) for phase in mined] or [self]
        return list({mining.model_dump_json(): mining for mining in found}.values())

    def variant_of_epoch(self, batches: "BatchSpec") -> list[int]:
        """Return which of ``variants`` each epoch uses; where none is mined, the last one did."""
        variants = self.variants(batches)
        chosen = 0
        found = []
        for segments in batches.segments():
            mined = [self.variant(phase) for _, phase in segments if phase.random_share < 1]
            chosen = variants.index(mined[0]) if mined else chosen
            found.append(chosen)
        return found

    def mines(self, batches: "BatchSpec") -> bool:
        """Say whether any batch is to be mined, not drawn at random."""
        share = min(phase.random_share for phase in batches.curriculum)
        return self.partitioner != "random" and share < 1

    def cutoff(self, task: str) -> int:
        """Return p: the one given, else the default of the dataset's task."""
        return DEFAULT_P[task] if self.p is None else self.p


MOST_EPOCHS = 32_767  # manifests number them in 16 bits


class Phase(Spec):
    """A stretch of training whose batches are made in one way."""

    epochs: float = Field(
        1.0,
        gt=0,
        le=MOST_EPOCHS,
        description="How long it lasts; a fraction ends inside an epoch.",
    )
    random_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the batches' places that go to rows drawn at random, k at a time; 1 "
        "for random batches.",
    )
    k: int | None = Field(None, ge=2, description="Rows in a community, instead of mining.k.")
    repulsion: float | None = Field(None, ge=0, description="Instead of mining.repulsion.")
    refresh: bool = Field(
        False,
        description="Mine anew before this phase, with the student so far as the teacher.",
    )


class BatchSpec(Spec):
    """From communities to the batches of every epoch."""

    batch_size: int = Field(64, ge=2, description="Rows in a batch: a multiple of mining.k.")
    curriculum: tuple[Phase, ...] = Field(
        (Phase(epochs=3),),
        min_length=1,
        description="Phases in order: by default three epochs of mined batches. A student from "
        "random weights does better with a first epoch at random.",
    )
    negatives: int = Field(
        0,
        ge=0,
        description="Hard negatives a query, shared by its batch (B3++: 5); none in batches of a "
        "classification, where no row has a window.",
    )
    mixing: Literal["proportional", "round-robin", "weighted", "across"] = Field(
        "proportional",
        description="Order of the datasets' batches in an epoch: shuffled; in turn while they "
        "last; or drawn by the datasets' weights while they last. Or across: each batch is drawn "
        "at random over the rows of all datasets.",
    )

    @property
    def epochs(self) -> int:
        """Epochs of all phases."""
        return round(sum(phase.epochs for phase in self.curriculum))

    @property
    def legs(self) -> "list[Self]":
        """Return the curriculum in pieces that are mined one after the other: cut at refreshes."""
        pieces: list[list[Phase]] = []
        for phase in self.curriculum:
            if phase.refresh or not pieces:
                pieces.append([])
            pieces[-1].append(phase.model_copy(update={"refresh": False}))
        return [self.model_copy(update={"curriculum": tuple(piece)}) for piece in pieces]

    def segments(self) -> list[list[tuple[float, Phase]]]:
        """Cut the phases at the ends of epochs.

        Returns
        -------
        list of list of (float, Phase)
            For each epoch the phases in it, with the share of the epoch that each lasts.
        """
        cuts: list[list[tuple[float, Phase]]] = [[] for _ in range(self.epochs)]
        start = 0.0
        for phase in self.curriculum:
            stop = start + phase.epochs
            for epoch in range(self.epochs):
                share = min(stop, epoch + 1) - max(start, epoch)
                if share > _SLIVER:
                    cuts[epoch].append((share, phase))
            start = stop
        return cuts

    @model_validator(mode="after")
    def _whole_epochs(self) -> Self:
        total = sum(phase.epochs for phase in self.curriculum)
        if total > MOST_EPOCHS:
            raise ValueError(f"the phases last {total:g} epochs, more than {MOST_EPOCHS:,}")
        if self.epochs < 1 or abs(total - self.epochs) > _SLIVER:
            raise ValueError(f"the phases last {total:g} epochs, not a whole number")
        if self.curriculum[0].refresh:
            raise ValueError("the first phase cannot refresh: there is no student yet to mine with")
        if self.mixing == "across" and any(phase.random_share < 1 for phase in self.curriculum):
            raise ValueError(
                "batches across datasets are random ones: mixing: across needs random_share: 1 in "
                "every phase"
            )
        for leg in self.legs:
            if abs(leg.epochs - sum(phase.epochs for phase in leg.curriculum)) > _SLIVER:
                raise ValueError("a phase that refreshes starts inside an epoch, not at its start")
        for epoch, segments in enumerate(self.segments()):
            mined = {(phase.k, phase.repulsion) for _, phase in segments if phase.random_share < 1}
            if len(mined) > 1:
                raise ValueError(f"k or repulsion changes inside epoch {epoch}, not at its start")
        return self
