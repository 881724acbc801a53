"""The demo: search in pairs read from what is installed beside this project."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow.parquet as pq

from b3_core import corpus
from b3_core.artifacts import Draft
from b3_core.config import PipelineSpec, parse_config
from b3_core.progress import Progress
from b3_core.stage import Stage
from b3_core.store import ArtifactStore


@dataclass(frozen=True)
class DemoCorpus(Stage):
    """Pairs of the installed packages in three parts, held out by package."""

    kind: str
    pairs: int
    source: str
    name: ClassVar[str] = "corpus"
    version: ClassVar[int] = corpus.VERSION

    @classmethod
    def of(cls, kind: str, pairs: int) -> Self:
        """Identify the packages that are installed now."""
        return cls(kind, pairs, corpus.corpus_fingerprint(corpus.KINDS[kind]))

    @property
    def dataset(self) -> str:  # noqa: D102 - the base class says it
        return corpus.KINDS[self.kind].dataset

    @property
    def settings(self) -> Mapping[str, Any]:  # noqa: D102
        return {"pairs": self.pairs}

    @property
    def inputs(self) -> Mapping[str, str]:  # noqa: D102
        return {"packages": self.source}

    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:  # noqa: D102
        read = corpus.read_corpus(corpus.KINDS[self.kind], self.pairs, progress=progress)
        for part in ("train", "validation", "test"):
            table = getattr(read, part)
            pq.write_table(table, draft.path(f"{part}.parquet"), compression="zstd")
            draft.counts[part] = len(table)


def demo_spec(store: ArtifactStore, made: DemoCorpus, settings: Mapping[str, Any]) -> PipelineSpec:
    """Return the configuration of the demo on a corpus that was read.

    Parameters
    ----------
    settings
        ``part`` to evaluate on, and any key of CONFIG.
    """
    artifact = store.get(made.address)
    changed = dict(settings)
    part = changed.pop("part")
    kind = corpus.KINDS[made.kind]
    dataset = {
        "name": made.dataset,
        "uri": f"{artifact.uri}/{artifact.files['train.parquet'].path}",
        "eval_uri": f"{artifact.uri}/{artifact.files[f'{part}.parquet'].path}",
        **kind.columns,
        "task": kind.task,
    }
    config = {
        "name": "demo",
        "datasets": [dataset],
        "incremental": False,  # what is compared here must not depend on what ran before
        "store": {"root": store.root},
        **changed,
    }
    for section, chosen in _CHOSEN.get(made.kind, _CHOSEN_FOR_TEXTS).items():
        given = config.get(section, {})
        own = {"model": given} if section == "teacher" and isinstance(given, str) else given
        config[section] = {**chosen, **own}
    return parse_config(config, base=Path.cwd())


def compared(kind: str) -> dict[str, Any]:
    """Return the arms of the demo, and in ``batches`` the curriculum of ``b3``, as settings.

    For code and prose that is what ``b3 tune`` chose on code with either teacher: to mine again
    with the student after the first epoch. ``paper-curriculum`` says what the published recipe
    makes of the same.
    """
    if isinstance(corpus.KINDS[kind], corpus.MadeKind):
        return {"arms": ["random", "paper", "b3"], "batches": {}}
    curriculum = [{"epochs": 1}, {"epochs": 2, "refresh": True}]
    return {
        "arms": ["random", "paper", "paper-curriculum", "b3"],
        "batches": {"curriculum": curriculum},
    }


# What did better on the validation part, for random batches and for mined ones (docs/findings.md):
# of temperatures 0.05 and 0.1 for texts.
_CHOSEN_FOR_TEXTS: dict[str, dict[str, Any]] = {"train": {"temperature": 0.1}}
_CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    # The teacher reads names, not pictures: each stands for its picture.
    "icons": {
        "teacher": {"model": "minilm", "reads": "positive"},
        "mining": {"p": 0},
        "batches": {"curriculum": [{"epochs": 2, "random_share": 1}, {"epochs": 2}]},
        "train": {"student": "glyphs", "symmetric": True, "temperature": 0.1},
        "evaluate": {"reverse": True},
    },
}
