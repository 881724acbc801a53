"""The whole CONFIG, and its arms."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from b3_core.config.base import Name, Spec
from b3_core.config.data import DatasetSpec
from b3_core.config.judging import EvalSpec, PromoteSpec
from b3_core.config.mining import BatchSpec, MiningSpec, Phase
from b3_core.config.models import TeacherSpec, TrainSpec
from b3_core.config.running import ComputeSpec, StoreSpec

ArmName = Literal["random", "same-dataset", "paper", "paper-curriculum", "b3", "b3++"]

#: Hard negatives a query of the arm b3++ (arXiv 2505.11293).
HARD_NEGATIVES = 5

#: Of mining, what the published recipe says (arXiv 2505.11293, section 4).
PAPER_MINING: dict[str, Any] = {
    "partitioner": "metis-paper",
    "graph": "mutual",
    "weights": "count",
    "swap_rounds": 0,
    "repulsion": 0.0,
    "evenness": 0.0,
}


class ArmSpec(Spec):
    """An arm of one's own: CONFIG's mining and batches with some keys changed."""

    name: Name = Field(description="What it is called in tables.")
    mining: dict[str, Any] = Field({}, description="Keys of mining that differ.")
    batches: dict[str, Any] = Field({}, description="Keys of batches that differ.")


class PipelineSpec(Spec):
    """One CONFIG: what to mine, train on and evaluate."""

    name: Name = Field(
        "pipeline", description="Names its deployments, and its results' place in the store."
    )
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1, max_length=128)  # 8 bits in a manifest
    teacher: TeacherSpec = TeacherSpec()
    mining: MiningSpec = MiningSpec()
    batches: BatchSpec = BatchSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvalSpec = EvalSpec()
    promote: PromoteSpec | None = Field(
        None,
        description="Compare a new student with the one in place, and mark it current or rejected; "
        "nothing is marked if absent.",
    )
    arms: tuple[ArmName | ArmSpec, ...] = Field(
        ("random", "b3"),
        min_length=1,
        description="What is trained side by side: names, or arms of one's own.",
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...] = Field(
        (0,), min_length=1, description="Each sets partition, batch order and initial weights."
    )
    incremental: bool = Field(
        True,
        description="Where a dataset changed since it was last mined in this store, embed and rank "
        "only its new rows, and mend its communities instead of looking for new ones.",
    )
    store: StoreSpec = StoreSpec()
    compute: ComputeSpec = ComputeSpec()

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_by_name(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _look_at_what_is_shown(self) -> Self:
        shown = {self.teacher.frames, self.train.frames}
        datasets = []
        for dataset in self.datasets:
            frames = tuple(sorted(shown.union(dataset.media.frames)))
            media = dataset.media.model_copy(update={"frames": frames})
            filmed = any("video" in kinds for kinds in dataset.media_columns.values())
            datasets.append(dataset.model_copy(update={"media": media}) if filmed else dataset)
        object.__setattr__(self, "datasets", tuple(datasets))  # frozen, but not made yet
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f"dataset names {names} are not all different")
        # Beside a student's fingerprint, and as a task, these would be taken for one another.
        taken = {"student"}
        if self.evaluate.reverse:
            taken |= {f"{name}-reverse" for name in names}
        if taken & set(names):
            raise ValueError(
                f"a dataset cannot be called {min(taken & set(names))!r}, which means something "
                "else in results"
            )
        for label, values in (("arms", self.arm_names), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{label} {list(values)} are not all different")
        if self.promote is not None and self.promote.arm not in self.arm_names:
            raise ValueError(
                f"promote.arm is {self.promote.arm!r}, but arms are {', '.join(self.arm_names)}"
            )
        for place, name in enumerate(self.arm_names):
            try:
                mining, batches = self.arm(name)
            except ValidationError as error:  # as if its keys had been read where they stand
                section = "mining" if error.title == MiningSpec.__name__ else "batches"
                raise ValidationError.from_exception_data(
                    self.__class__.__name__,
                    [
                        InitErrorDetails(
                            type=each["type"],
                            loc=("arms", place, section, *each["loc"]),
                            input=each["input"],
                            ctx=each.get("ctx", {}),
                        )
                        for each in error.errors()
                    ],
                ) from error
            for variant in mining.variants(batches):
                if batches.batch_size % variant.k:
                    raise ValueError(
                        f"batches.batch_size is {batches.batch_size}, "
                        f"which is no multiple of k = {variant.k} (arm {name})"
                    )
        return self

    @property
    def arm_names(self) -> tuple[str, ...]:
        """Names of the arms, in order."""
        return tuple(arm if isinstance(arm, str) else arm.name for arm in self.arms)

    def arm(self, name: str) -> tuple[MiningSpec, BatchSpec]:
        """Return the mining and batching of one arm; ``b3`` is CONFIG's own.

        An arm of ``arms`` that is not just a name is CONFIG's own with its keys changed.

        ``b3++`` is ``b3`` with hard negatives, five a query unless CONFIG says how many.
        ``random`` shuffles the rows of all datasets, which is what is done by default;
        ``same-dataset`` the rows of each, so that the worth of mining is told from that of batches
        of one dataset. Of a single dataset both are the same. ``paper`` is the published recipe:
        the mutual graph, METIS at its defaults, no swaps, no curriculum (arXiv 2505.11293, section
        4). ``paper-curriculum`` is the same with CONFIG's curriculum, to tell the worth of either.
        """
        for own in self.arms:
            if isinstance(own, ArmSpec) and own.name == name:
                return (
                    MiningSpec.model_validate(self.mining.model_dump() | own.mining),
                    BatchSpec.model_validate(self.batches.model_dump() | own.batches),
                )
        everywhere = float(self.batches.epochs)
        if name in ("random", "same-dataset"):
            at_random: dict[str, Any] = {
                "curriculum": (Phase(epochs=everywhere, random_share=1),),
            }
            if name == "random" and len(self.datasets) > 1:
                at_random["mixing"] = "across"
            return (
                self.mining.model_copy(
                    update={"partitioner": "random", "swap_rounds": 0, "evenness": 0.0}
                ),
                self.batches.model_copy(update=at_random),
            )
        if name.startswith("paper"):
            return (
                self.mining.model_copy(update=PAPER_MINING),
                self.batches
                if name == "paper-curriculum"
                else self.batches.model_copy(update={"curriculum": (Phase(epochs=everywhere),)}),
            )
        if name == "b3++":
            hard = {"negatives": self.batches.negatives or HARD_NEGATIVES}
            return self.mining, self.batches.model_copy(update=hard)
        return self.mining, self.batches
