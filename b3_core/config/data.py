"""Where a dataset's rows are, and which columns are what."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from b3_core.config.base import Name, Spec, Uri
from b3_core.config.models import TeacherSpec, TrainSpec
from b3_core.paths import fixed, fixed_folder

Task = Literal["retrieval", "grounding", "vqa", "classification"]

#: What files of rows are called.
DATA_SUFFIXES = {".parquet", ".arrow", ".tar"}

Prompted = TypeVar("Prompted", TeacherSpec, TrainSpec)


class MediaSpec(Spec):
    """Where the images and videos of a dataset are, and what is done about those that are bad."""

    root: Uri | None = Field(
        None,
        description="Folder or s3:// prefix that paths of images and videos are below, and never "
        "leave; by default the folder of the dataset's uri.",
    )
    bad: Literal["refuse", "skip"] = Field(
        "refuse",
        description="What a missing, broken or oversized one does: end the run, naming it, or have "
        "its rows left out, counted and listed.",
    )
    max_bytes: int = Field(
        64 << 20, ge=1, description="Of an image's file; 16 times that of video."
    )
    max_pixels: int = Field(50_000_000, ge=1, description="Of an image, or of a video's frame.")
    max_seconds: float = Field(3600, gt=0, description="Of a video.")
    frames: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="How many frames of each video are decoded when it is looked at. Those that "
        "teacher and student are shown are added.",
    )


#: Columns of MMEB-train's parquet files (arXiv 2410.05160).
_MMEB = {
    "query": "qry",
    "query_image": "qry_image_path",
    "positive": "pos_text",
    "positive_image": "pos_image_path",
}


class DatasetSpec(Spec):
    """One dataset of (query, positive) rows, each side a text, an image or video, or both."""

    name: Name = Field(description="Names the dataset's folder in the store.")
    uri: Uri = Field(
        description="Parquet, Arrow (a dataset that Hugging Face saved on disk) or tar "
        "(webdataset) file, folder or glob; local path or s3://."
    )
    layout: Literal["columns", "mmeb"] = Field(
        "columns",
        description="mmeb: columns are MMEB-train's, and its image marks are taken out of texts.",
    )
    query: str | None = Field(None, description="Column that holds the query's text.")
    query_image: str | None = Field(
        None, description="Column of the query's image: paths below media.root, or bytes."
    )
    query_video: str | None = Field(None, description="Column of the query's video, likewise.")
    positive: str | None = Field(None, description="Column that holds the positive's text.")
    positive_image: str | None = Field(None, description="Column of the positive's image.")
    positive_video: str | None = Field(None, description="Column of the positive's video.")
    media: MediaSpec = Field(
        MediaSpec(), description="Where its images and videos are, and what bad ones do."
    )
    group: str | None = Field(
        None,
        description="Column whose equal values mark rows that are positives of one another; "
        "by default rows with the same positive text form a group.",
    )
    negative: str | None = Field(
        None,
        description="Column of a hard negative's text for each row (triplets): trained on beside "
        "what is mined, and a negative of every query of the batch. In layout mmeb, some may be "
        "blank.",
    )
    negative_image: str | None = Field(None, description="Column of the hard negative's image.")
    negative_video: str | None = Field(None, description="Column of the hard negative's video.")
    task: Task = Field(
        "retrieval",
        description="Sets the default of mining.p; for classification, whose positives are label "
        "texts, rows are linked by the labels they are near (mining.label_share).",
    )
    weight: float = Field(
        1.0, gt=0, description="How early its batches come where batches.mixing is 'weighted'."
    )
    eval_uri: Uri | None = Field(
        None,
        description="Held-out rows, same columns; by default a share of the groups is held out.",
    )
    query_prompt: str | None = Field(
        None, description="Put before its queries, instead of the teacher's and the student's."
    )
    positive_prompt: str | None = Field(None, description="Put before its positives, likewise.")

    @property
    def media_columns(self) -> dict[str, dict[str, str]]:
        """Columns of images and videos: side -> kind -> column, for those that there are."""
        return {
            side: kinds
            for side in ("query", "positive", "negative")
            if (
                kinds := {
                    kind: column
                    for kind in ("image", "video")
                    if (column := getattr(self, f"{side}_{kind}")) is not None
                }
            )
        }

    @property
    def media_root(self) -> str:
        """Folder or prefix that media are below."""
        if self.media.root is not None:
            return self.media.root
        is_file = fixed(self.uri) != self.uri or PurePosixPath(self.uri).suffix in DATA_SUFFIXES
        return fixed_folder(self.uri) if is_file else self.uri

    @model_validator(mode="before")
    @classmethod
    def _of_layout(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("layout") == "mmeb":
            return {**_MMEB, **value}
        return value

    @model_validator(mode="after")
    def _both_sides(self) -> Self:
        for side in ("query", "positive"):
            if getattr(self, side) is None and side not in self.media_columns:
                raise ValueError(f"a dataset lacks '{side}': a column of texts, or {side}_image")
        return self

    def prompted(self, spec: Prompted) -> Prompted:
        """Return a teacher or student with the prompts that this dataset has of its own."""
        own = {"query_prompt": self.query_prompt, "positive_prompt": self.positive_prompt}
        return spec.model_copy(update={k: v for k, v in own.items() if v is not None})
