"""What students are judged on, and by which rule one is promoted."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from b3_core.config.base import Name, Spec


class BenchmarkSpec(Spec):
    """A published benchmark, evaluated from a local copy of it."""

    name: Literal[
        "mmeb",
        "flickr30k",
        "coco",
        "coco-1k",
        "urban1k",
        "images",
        "msrvtt",
        "msvd",
        "didemo",
        "vatex",
        "activitynet",
        "videos",
    ] = Field(description="Which one; images and videos are sets of one's own (docs/media.md).")
    folder: str = Field(description="Where its annotations are: a local folder.")
    media: str | None = Field(
        None, description="Folder or s3:// prefix of its images or videos; else the same folder."
    )
    tasks: tuple[str, ...] = Field((), description="Some of its tasks, by name; all if none.")
    positive_prompts: bool = Field(
        True, description="Put MMEB's prompts before its targets (arXiv 2505.11293)."
    )
    text_query_prompt: str = Field("", description="Before a caption that is searched with.")
    text_target_prompt: str = Field("", description="Before a caption that is searched for.")
    media_query_prompt: str = Field("", description="Beside an image or video searched with.")
    media_target_prompt: str = Field("", description="Beside an image or video searched for.")
    drop_missing: bool = Field(
        False, description="Leave out captions whose image or video is gone, and count them."
    )


class EvalSpec(Spec):
    """Held-out queries against every positive of their dataset."""

    holdout: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of groups held out of a dataset that names no eval_uri.",
    )
    kept_back: float = Field(
        0,
        ge=0,
        lt=1,
        description="Share of groups of such a dataset that are neither trained on nor held out.",
    )
    trial: bool = Field(
        False,
        description="Keep back what is held out otherwise too, and hold out as large a share of "
        "the rest: `b3 tune` judges by groups that no run reports on.",
    )
    max_queries: int = Field(4000, ge=1, description="Held-out queries at most, per dataset.")
    reverse: bool = Field(
        False,
        description="Rank queries for held-out positives too, as text-to-image beside "
        "image-to-text; reported as a task of its own.",
    )

    benchmarks: tuple[BenchmarkSpec, ...] = Field(
        (),
        description="Published benchmarks, for each arm's student of the first seed.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [each.name for each in self.benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(
                f"benchmarks {names} are not all different, and one's scores would stand for "
                "another's; give each its own CONFIG"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation is known by; choices that came later are left out at their default."""
        later = {name for name in ("reverse", "kept_back", "trial") if not getattr(self, name)}
        return self.model_dump(exclude={"benchmarks", *later})


class PromoteSpec(Spec):
    """When a new student takes the place of the one before it."""

    arm: Name = Field("b3", description="Whose student is the candidate: of the first seed.")
    rule: Literal["better", "not-worse"] = Field(
        "not-worse",
        description="What the interval of MRR (new - current, 95 %) must show to promote it: all "
        "above margin; or all above -margin.",
    )
    margin: float = Field(0.005, ge=0, le=1, description="In MRR, which lies between 0 and 1.")
