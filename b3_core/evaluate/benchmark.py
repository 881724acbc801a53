"""Run a benchmark from a local copy: one entry point for all of them.

    Benchmark -> reader -> items -> Embedder -> vectors -> tiles -> ranks -> Score, one a task

A task that fails leaves its reason in the result and the others go on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError, reason
from b3_core.evaluate import captions, mmeb, video
from b3_core.evaluate.captions import CaptionSet, rank_metrics
from b3_core.evaluate.encoder import Embedder, Encoder, Forgetful, Memory
from b3_core.evaluate.local import media_names
from b3_core.evaluate.retrieval import rank_of_positive
from b3_core.evaluate.tiles import ranks_in_lists
from b3_core.media import MediaRoot
from b3_core.progress import Progress, silent

VERSION = 1

IMAGE_SETS = ("flickr30k", "coco", "coco-1k", "urban1k", "images")
VIDEO_SETS = (*video.VIDEO, "videos")
#: ``images`` and ``videos`` are sets of one's own: see :func:`captions.read_plain`.
BENCHMARKS = ("mmeb", *IMAGE_SETS, *VIDEO_SETS)

_Vectors = npt.NDArray[np.float32]


class _Ranked(NamedTuple):
    rank_Q: npt.NDArray[np.int64]
    candidates: int


@dataclass(frozen=True)
class Prompts:
    """What goes before texts, as query or as target; of captions and media only.

    MMEB's queries carry their own, and its targets have those of :func:`mmeb.positive_prompt`.
    """

    text_query: str = ""
    text_target: str = ""
    media_query: str = ""
    media_target: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Which benchmark, and where its local copy is.

    Raises
    ------
    InputError
        There is no such benchmark, or it has no such task.
    """

    name: str
    """One of :data:`BENCHMARKS`."""
    folder: str
    """Annotations: a local folder."""
    media: str = ""
    """Folder or ``s3://bucket/prefix`` of images or videos; "": the same folder."""
    tasks: tuple[str, ...] = ()
    """Some of :func:`tasks_of`; all by default."""
    positive_prompts: bool = True
    """MMEB's targets have their prompts."""
    prompts: Prompts = field(default_factory=Prompts)
    drop_missing: bool = False
    """Leave captions out whose image or video is not there, and say how many."""

    def __post_init__(self) -> None:
        if self.name not in BENCHMARKS:
            raise InputError(
                f"no benchmark '{self.name}'", expected=f"one of {', '.join(BENCHMARKS)}"
            )
        unknown = [task for task in self.tasks if task not in tasks_of(self.name)]
        if unknown:
            raise InputError(
                f"{self.name} has no task '{unknown[0]}'",
                expected=f"some of {', '.join(tasks_of(self.name))}",
            )


def tasks_of(name: str) -> tuple[str, ...]:
    """Return a benchmark's tasks: MMEB's 36, or both directions."""
    if name == "mmeb":
        return tuple(task.name for task in mmeb.TASKS)
    return ("t2v", "v2t") if name in VIDEO_SETS else ("t2i", "i2t")


@dataclass(frozen=True)
class Score:
    """What came of one task."""

    task: str
    metrics: dict[str, float] = field(default_factory=dict)
    """``hit@1`` and more; empty if it failed or is missing."""
    queries: int = 0
    candidates: int = 0
    """Unique ones: of the whole corpus, or of all queries' lists."""
    left_out: int = 0
    """Media of the benchmark that are not there."""
    seconds: float = 0.0
    error: str = ""
    """Why it failed, in one line."""
    missing: bool = False
    """It is not in the local copy."""


@dataclass(frozen=True)
class BenchmarkResult:
    """What came of a benchmark."""

    benchmark: str
    scores: tuple[Score, ...]
    """One a task that was asked for, in the benchmark's order."""
    means: dict[str, mmeb.Mean] = field(default_factory=dict)
    """Of MMEB, over the tasks that ran."""

    @property
    def complete(self) -> bool:
        """Every task ran, on all of its media."""
        return all(score.metrics and not score.left_out for score in self.scores)


def run_benchmark(
    spec: Benchmark,
    encoder: Encoder,
    *,
    memory: Memory | None = None,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Evaluate an encoder on a benchmark.

    Parameters
    ----------
    spec
        Which one and where.
    encoder
        The model.
    memory
        Keeps this encoder's vectors from run to run; nothing by default.
    progress
        Told how many tasks of all are done.

    Returns
    -------
    BenchmarkResult
        With a score for each task asked for, be it that it failed or is missing.
    """
    embedder = Embedder(encoder, MediaRoot(spec.media or spec.folder), memory or Forgetful())
    wanted = [task for task in tasks_of(spec.name) if task in (spec.tasks or (task,))]
    run = _mmeb if spec.name == "mmeb" else _captions
    scores = []
    for score in run(spec, wanted, embedder):
        scores.append(score)
        progress(len(scores), len(wanted))
    return of_scores(spec.name, scores)


def of_scores(name: str, scores: Sequence[Score]) -> BenchmarkResult:
    """Put the scores of a benchmark's tasks together, with MMEB's means over those that ran."""
    hit = {score.task: score.metrics["hit@1"] for score in scores if score.metrics}
    return BenchmarkResult(name, tuple(scores), mmeb.means(hit) if name == "mmeb" else {})


def read_captions(spec: Benchmark) -> CaptionSet:
    """Read the captions of a benchmark that is not MMEB.

    Raises
    ------
    InputError
        As its reader does.
    """
    folder, names = Path(spec.folder), media_names(spec.media or spec.folder)
    drop = spec.drop_missing
    if spec.name in {"images", "videos"}:
        return captions.read_plain(spec.name.removesuffix("s"), folder, names, drop=drop)
    if spec.name == "urban1k":
        return captions.read_urban1k(folder, names, drop=drop)
    if spec.name in IMAGE_SETS:
        return captions.read_karpathy(spec.name, folder, names, drop=drop)
    return video.read_video(spec.name, folder, names, drop=drop)


def _mmeb(spec: Benchmark, wanted: list[str], embedder: Embedder) -> Iterator[Score]:
    by_name = {task.name: task for task in mmeb.TASKS}
    for name in wanted:
        if not mmeb.task_files(Path(spec.folder), name):
            yield Score(name, missing=True)
            continue
        prompt = mmeb.positive_prompt(by_name[name]) if spec.positive_prompts else ""
        yield _scored(name, partial(_ranks_in_lists, spec, name, prompt, embedder))


def _ranks_in_lists(spec: Benchmark, task: str, prompt: str, embedder: Embedder) -> _Ranked:
    lists = mmeb.read_task(Path(spec.folder), task)
    rank_Q = ranks_in_lists(
        embedder.embed(lists.queries),
        embedder.embed(lists.candidates, prompt=prompt),
        lists.parts,
    )
    return _Ranked(rank_Q, len(lists.candidates))


def _captions(spec: Benchmark, wanted: list[str], embedder: Embedder) -> Iterator[Score]:
    try:
        found = read_captions(spec)
    except Exception as error:  # whatever it is, the result tells it
        yield from (Score(task, error=reason(error)) for task in wanted)
        return
    texts = cache(lambda prompt: embedder.embed(found.texts, prompt=prompt))
    media = cache(lambda prompt: embedder.embed(found.media, prompt=prompt))
    for task in wanted:
        score = _scored(task, partial(_ranks_of_best, spec.prompts, task, found, (texts, media)))
        yield replace(score, left_out=found.left_out)


def _ranks_of_best(
    prompts: Prompts,
    task: str,
    found: CaptionSet,
    vectors: tuple[Callable[[str], _Vectors], Callable[[str], _Vectors]],
) -> _Ranked:
    """Rank one way: captions of one medium do not compete with one another."""
    texts, media = vectors
    medium_F = np.arange(len(found.files), dtype=np.int32)
    if task.startswith("t2"):
        query, target = texts(prompts.text_query), media(prompts.media_target)
        rank_Q = rank_of_positive(query, target, group_Q=found.owner_C, group_C=medium_F)
    else:
        query, target = media(prompts.media_query), texts(prompts.text_target)
        rank_Q = rank_of_positive(query, target, group_Q=medium_F, group_C=found.owner_C)
    return _Ranked(rank_Q, len(target))


def _scored(task: str, run: Callable[[], _Ranked]) -> Score:
    start = time.perf_counter()
    try:
        rank_Q, candidates = run()
    except Exception as error:  # the other tasks go on, and the result tells it
        return Score(task, seconds=time.perf_counter() - start, error=reason(error))
    return Score(
        task, rank_metrics(rank_Q), len(rank_Q), candidates, seconds=time.perf_counter() - start
    )
