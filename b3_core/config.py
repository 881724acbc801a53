"""What a user asks for: frozen pydantic models, one section of CONFIG each.

``PipelineSpec`` is the whole. Every field is either *identity* (it changes what is made and
enters the fingerprint of a stage) or *compute* (it changes only how it is made, and never does):
the sections ``store`` and ``compute`` are compute, all others identity.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from b3_core.errors import InputError

Task = Literal["retrieval", "grounding", "vqa", "classification"]
ArmName = Literal["random", "same-dataset", "paper", "paper-curriculum", "b3", "b3++"]

#: Hard negatives a query of the arm b3++ (arXiv 2505.11293).
HARD_NEGATIVES = 5

#: False-negative cut-off p by task (arXiv 2505.11293; VQA answers are short and nearly repeat).
#: Classification ranks labels instead of rows, and knows no p.
DEFAULT_P: dict[str, int] = {"retrieval": 30, "grounding": 30, "vqa": 70, "classification": 0}

#: Of mining, what the published recipe says (arXiv 2505.11293, section 4).
PAPER_MINING: dict[str, Any] = {
    "partitioner": "metis-paper",
    "graph": "mutual",
    "weights": "count",
    "swap_rounds": 0,
    "repulsion": 0.0,
    "evenness": 0.0,
}

#: What files of rows are called.
DATA_SUFFIXES = {".parquet", ".arrow", ".tar"}

_SLIVER = 1e-6  # of an epoch: sums of fractions such as 1/3 are not exact

Prompted = TypeVar("Prompted", "TeacherSpec", "TrainSpec")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Spec(BaseModel):
    """Base of every section: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MediaSpec(Spec):
    """Where the images and videos of a dataset are, and what is done about those that are bad."""

    root: str | None = Field(
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
    uri: str = Field(
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
    eval_uri: str | None = Field(
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
        fixed = re.split(r"[*?[]", self.uri, maxsplit=1)[0]
        is_file = fixed != self.uri or PurePosixPath(self.uri).suffix in DATA_SUFFIXES
        return fixed.rpartition("/")[0] if is_file else fixed

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
    query_prompt: str = Field("", description="Put before every query.")
    positive_prompt: str = Field("", description="Put before every positive.")
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

    def cutoff(self, task: str) -> int:
        """Return p: the one given, else the default of the dataset's task."""
        return DEFAULT_P[task] if self.p is None else self.p


class Phase(Spec):
    """A stretch of training whose batches are made in one way."""

    epochs: float = Field(
        1.0, gt=0, description="How long it lasts; a fraction ends inside an epoch."
    )
    random_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of each batch that is drawn at random; 1 for random batches.",
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
        description="Share of groups of such a dataset that are neither trained on nor held out: "
        "`b3 tune` keeps back what a run holds out, and judges by the groups after them.",
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
        later = {name for name in ("reverse", "kept_back") if not getattr(self, name)}
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


class StoreSpec(Spec):
    """Where artifacts live. Credentials come from the environment, never from CONFIG."""

    root: str = Field(".b3", description="Local folder or s3://bucket/prefix.")
    single_writer: bool = Field(
        False,
        description="Accept a store that ignores If-None-Match (some S3 servers do); then only one "
        "run at a time may write to it.",
    )


class ComputeSpec(Spec):
    """How work is spread; never changes what is made."""

    workers: int | None = Field(
        None, ge=1, description="Teacher actors; one a core or GPU if absent."
    )
    shard_rows: int = Field(
        4096, ge=1, description="Rows a shard; rounded up to whole encoder blocks."
    )
    gpus_per_worker: float = Field(
        0, ge=0, description="GPU share of one actor or trainer: below 1, or a whole number."
    )
    train_workers: int = Field(1, ge=1, description="Data-parallel trainers.")
    loader_workers: int = Field(
        0, ge=0, description="Processes of a trainer that decode images and videos ahead of it."
    )
    checkpoint_minutes: float = Field(
        10, gt=0, description="How long a training runs before it is kept for one that goes on."
    )
    grace_seconds: float = Field(
        20,
        ge=0,
        description="How long a run that is told to end (SIGTERM) waits for its trainings to keep "
        "the step they are at.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: half the memory."
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="Where else losses go; keys come from each service's own environment."
    )
    keep_vectors_gb: float = Field(
        20,
        ge=0,
        description="Most space in the store for what a student made of benchmarks, so that it is "
        "not embedded again.",
    )
    log_dir: str = Field("b3-logs", description="Folder of TensorBoard's files, a run a folder.")

    @field_validator("gpus_per_worker")
    @classmethod
    def _part_or_whole(cls, value: float) -> float:
        """Refuse what Ray does: a share that is more than one GPU and no whole number."""
        if value > 1 and value % 1:
            raise ValueError("above 1 a worker takes whole GPUs: 2, 3 and so on")
        return value


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
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
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
        for name in self.arm_names:
            try:
                mining, batches = self.arm(name)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise ValueError(f"arm {name}, {key}: {first['msg']}") from error
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


def load_config(path: str | os.PathLike[str]) -> PipelineSpec:
    """Read CONFIG, a YAML file of :class:`PipelineSpec`.

    Relative paths in it are taken from the folder CONFIG lies in, and made absolute: the spec
    may be sent to a worker that runs elsewhere.

    Raises
    ------
    InputError
        The file is missing or no YAML mapping, a key is unknown, or a value is out of bounds.
    """
    file = Path(path)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(
            f"cannot read CONFIG {file}: {reason}",
            expected="a YAML file",
            remedy="check the path",
        ) from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise InputError(
            f"CONFIG {file} is no valid YAML{line}: {getattr(error, 'problem', error)}",
            remedy="mend that line",
        ) from error
    if not isinstance(data, dict):
        raise InputError(f"CONFIG {file} holds no mapping", expected="keys such as 'datasets'")
    return parse_config(data, base=file.resolve().parent)


def parse_config(data: Mapping[str, Any], *, base: Path) -> PipelineSpec:
    """Validate a mapping as :class:`PipelineSpec`; relative paths are taken from ``base``."""
    try:
        spec = PipelineSpec.model_validate(dict(data))
    except ValidationError as error:
        raise _one_line(error) from error
    datasets = [
        d.model_copy(
            update={
                "uri": absolute_uri(d.uri, base),
                "eval_uri": None if d.eval_uri is None else absolute_uri(d.eval_uri, base),
                "media": d.media.model_copy(
                    update={"root": d.media.root and absolute_uri(d.media.root, base)}
                ),
            }
        )
        for d in spec.datasets
    ]
    benchmarks = tuple(
        each.model_copy(
            update={
                "folder": absolute_uri(each.folder, base),
                "media": each.media and absolute_uri(each.media, base),
            }
        )
        for each in spec.evaluate.benchmarks
    )
    store = spec.store.model_copy(update={"root": absolute_uri(spec.store.root, base)})
    log_dir = absolute_uri(spec.compute.log_dir, base)
    return spec.model_copy(
        update={
            "datasets": tuple(datasets),
            "evaluate": spec.evaluate.model_copy(update={"benchmarks": benchmarks}),
            "compute": spec.compute.model_copy(update={"log_dir": log_dir}),
            "store": store,
            "teacher": spec.teacher.model_copy(update={"model": _model(spec.teacher.model, base)}),
            "train": spec.train.model_copy(update={"student": _model(spec.train.student, base)}),
        }
    )


def absolute_uri(uri: str, base: Path) -> str:
    """Make a local path absolute from ``base``; leave anything with a scheme alone."""
    return uri if "://" in uri else str((base / Path(uri).expanduser()).absolute())


def _model(model: str, base: Path) -> str:
    folder = base / Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def _one_line(error: ValidationError) -> InputError:
    """Turn pydantic's first complaint into one line, with the nearest known key for a typo."""
    first = error.errors()[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return InputError(
            f"unknown key '{where}' in CONFIG",
            expected=f"one of: {', '.join(known)}",
            remedy=f"did you mean '{near[0]}'?" if near else "remove it",
        )
    if first["type"] == "missing":
        return InputError(f"CONFIG lacks '{where}'", remedy="add it")
    message = first["msg"].removeprefix("Value error, ")
    value = "" if isinstance(first["input"], (dict, list)) else f" is {first['input']!r}"
    if not where:
        return InputError(f"CONFIG is not consistent: {message}", remedy="change one of them")
    return InputError(f"'{where}' in CONFIG{value}: {message}", remedy="correct the value")


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = PipelineSpec
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = next(iter(get_args(annotation)), annotation)  # of tuple[DatasetSpec, ...]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
