"""The teacher, the student, and how it is trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from b3_core.config.base import Spec

#: Models that come with packages: teachers and students that are named, not folders.
PACKAGED = frozenset({"static", "tokens", "glyphs", "minilm"})

Pooling = Annotated[
    Literal["mean", "cls", "lasttoken"] | None,
    Field(
        description="How a transformer's token vectors become one; as the model says, if absent. "
        "Embedders made of decoders take the last token's."
    ),
]


ImageSide = Annotated[
    int | None,
    Field(
        ge=8,
        description="Images are scaled down to at most so many pixels a side before the model's "
        "own processor; only that, by default.",
    ),
]
Frames = Annotated[int, Field(ge=1, description="Frames of a video, at equal distances.")]


class TeacherSpec(Spec):
    """The pretrained encoder that ranks positives for each query."""

    model: str = Field(
        "static",
        description="'static' or 'minilm' (both packaged, offline), or a sentence-transformers "
        "model: a folder, or a hub id with its revision.",
    )
    revision: str | None = Field(None, description="Commit of a hub model; required for hub ids.")
    query_prompt: str | None = Field(
        None, description="Put before every query; the model's own 'query' prompt by default."
    )
    positive_prompt: str | None = Field(
        None,
        description="Put before every positive; the model's own for documents by default.",
    )
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept; the model's own by default."
    )
    pooling: Pooling = None
    reads: Literal["both", "positive"] = Field(
        "both",
        description="What stands for a row when its positives are ranked: its query, or, for a "
        "teacher that cannot read queries (a text model, of images), its own positive.",
    )
    image_side: ImageSide = None
    frames: Frames = 8
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the encoder.")


class LoraSpec(Spec):
    """Low-rank adapters, trained instead of the weights and merged into them at the end."""

    r: int = Field(8, ge=1, description="Rank.")
    alpha: int = Field(64, ge=1, description="The adapters' output is scaled by alpha / r.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the adapters' input.")
    targets: tuple[str, ...] = Field(
        (), description="Names of the layers that get one, such as q_proj; all linear ones if none."
    )


class TrainSpec(Spec):
    """The student and its contrastive training (InfoNCE, query to positive)."""

    student: str = Field(
        "tokens",
        description="'tokens' (texts are means of token vectors, which start from "
        "all-MiniLM-L6-v2's), 'static' (the same from random weights), 'glyphs' (such texts, and "
        "small grey pictures by a network from random weights), 'minilm', or a "
        "sentence-transformers model: a folder, or a hub id with its revision.",
    )
    revision: str | None = Field(None, description="Commit of a hub model; required for hub ids.")
    dim: int = Field(256, ge=8, description="Width of the student 'static'.")
    temperature: float = Field(0.05, gt=0, description="Scores are divided by it in InfoNCE.")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak; by default at a batch of 64 1e-2 for 'static', 1.5e-3 for other static "
        "models (sparse Adam), 4e-3 for 'glyphs', 2e-5 for transformers (AdamW) and 1e-4 for "
        "adapters, growing with the batch's root.",
    )
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the steps that warm up.")
    max_length: int | None = Field(
        None, ge=1, description="Tokens kept; the model's own by default."
    )
    query_prompt: str = Field("", description="Put before every query.")
    positive_prompt: str = Field("", description="Put before every positive.")
    pooling: Pooling = None
    image_side: ImageSide = None
    frames: Frames = 8
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the student.")
    symmetric: bool = Field(
        False, description="Contrast positives with queries too: the mean of both directions."
    )
    chunk_rows: int | None = Field(
        None,
        ge=1,
        description="Rows of one forward pass, with the gradients of the vectors cached; by "
        "default 64 where a device has more than 256 rows of a batch, and else all of them.",
    )
    positive_margin: float | None = Field(
        None,
        gt=0,
        description="Contrast no query with what the teacher scores above this share of its own "
        "positive's score (0.95 is usual); all are contrasted if absent.",
    )
    lora: LoraSpec | None = Field(
        None, description="Train adapters instead of all weights; absent, all are trained."
    )

    @model_validator(mode="after")
    def _one_direction_of_margin(self) -> Self:
        if self.symmetric and self.positive_margin is not None:
            raise ValueError(
                "positive_margin says which positives a query is not contrasted with, and "
                "symmetric asks for the other direction too: leave one of them out"
            )
        return self
