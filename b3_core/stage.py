"""A stage: what it makes, apart from how and where that is done.

A stage is a small frozen value. Its address follows from its settings, the fingerprints of its
inputs and its code's version, so a whole run can be planned before anything is computed, and a
stage can be sent to another process.
"""

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np

from b3_core.artifacts import PARTS, Address, Artifact, Draft, canonical_json
from b3_core.progress import Progress, silent
from b3_core.store import ArtifactStore

S = TypeVar("S", bound="Stage")

#: Cores: as many as the largest node has.
WHOLE_NODE = 1 << 16


class Stage(ABC):
    """One artifact to be made.

    Subclasses are frozen dataclasses that hold addresses and settings only.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    in_parts: ClassVar[bool] = False
    """Whether it is put together from parts (``waves``)."""
    cores: ClassVar[int] = 1
    """How many it has use for, where another process makes it."""
    unheard: ClassVar[bool] = False
    """Whether a large one stops its process for minutes: it is C, and holds Python's lock."""

    @property
    @abstractmethod
    def dataset(self) -> str:
        """Folder in the store."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What the user chose that decides the output: plain JSON, no paths, no worker counts."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Fingerprints or digests of everything read."""

    @property
    def title(self) -> str:
        """What a person reads while the stage runs."""
        return f"{self.name} of {self.dataset}"

    @abstractmethod
    def build(self, store: ArtifactStore, draft: Draft, progress: Progress) -> None:
        """Read the inputs, compute, write files and counts into the draft."""

    def waves(self, store: ArtifactStore) -> Iterator[Sequence["Stage"]]:
        """Yield the parts that this is put together from, if any, a wave at a time.

        Parts of a wave do not need one another and may be made at once, anywhere; those of a later
        wave may need earlier ones, so the next wave is asked for when one is done.
        """
        yield from ()

    @cached_property
    def address(self) -> Address:
        """Where the artifact will be, known before it is made."""
        return self.address_of(self.inputs)

    def address_of(self, inputs: Mapping[str, str]) -> Address:
        """Return where the artifact of the same settings and other inputs is."""
        return Address.of(
            self.dataset,
            self.name,
            version=self.version,
            settings=self.settings,
            inputs=inputs,
        )

    def run(self, store: ArtifactStore, progress: Progress = silent) -> Artifact:
        """Return the artifact, made now unless it is there already."""
        found = store.find(self.address)
        return self.make(store, progress) if found is None else found

    def make(self, store: ArtifactStore, progress: Progress = silent) -> Artifact:
        """Make the artifact and return it; of two that are made at once, the first stays."""
        for wave in self.waves(store):
            for part in wave:
                part.run(store)
        with store.draft(self.address, lineage=self.inputs, settings=self.settings) as draft:
            self.build(store, draft, progress)
        return store.get(self.address)


def run_stages(root: str, stages: Sequence["Stage"]) -> None:
    """Make what a store lacks, in order: the body of a call by Ray."""
    store = ArtifactStore(root)
    for stage in stages:
        stage.run(store)


class Past:
    """What a store holds of earlier runs; each folder is listed once."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self._listed: dict[tuple[str, str], list[Artifact]] = {}

    def artifacts(self, dataset: str, stage: str) -> list[Artifact]:
        """Return every whole artifact of a dataset's stage, in the order they were finished."""
        key = dataset, stage
        if key not in self._listed:
            self._listed[key] = self.store.artifacts(*key)
        return self._listed[key]

    def like(self, stage: Stage) -> list[Artifact]:
        """Return what this version of a stage made with the same settings of whatever inputs."""
        settings = json.loads(canonical_json(stage.settings))
        return [
            artifact
            for artifact in self.artifacts(stage.dataset, stage.name)
            if artifact.record["settings"] == settings
            and artifact.address == stage.address_of(artifact.record["lineage"])
        ]

    def last(self, stage: Stage, inputs: Mapping[str, str]) -> Address | None:
        """Return the last artifact like ``stage`` whose inputs include these."""
        found = [
            artifact.address
            for artifact in self.like(stage)
            if inputs.items() <= artifact.record["lineage"].items()
        ]
        return found[-1] if found else None


def parts_cost(parts: Sequence[Stage], store: ArtifactStore) -> dict[str, float]:
    """Return what parts took, for the counts of what they were put together to.

    Returns
    -------
    dict
        ``count``, ``seconds`` and ``bytes``, summed, and ``peak_mb``, the most of one.
    """
    costs = [cost_of(store.get(part.address)) for part in parts]
    return {
        "count": len(costs),
        "seconds": round(sum(each["seconds"] for each in costs), 3),
        "bytes": sum(each["bytes"] for each in costs),
        "peak_mb": max(each["peak_mb"] for each in costs),
    }


def cost_of(artifact: Artifact) -> dict[str, float]:
    """Return what an artifact took by its record, the parts it was put together from included.

    Returns
    -------
    dict
        ``seconds``, ``bytes``, ``peak_mb``, and ``parts``, how many there were, or 1.
    """
    record = artifact.record
    parts = artifact.counts.get(PARTS, {})
    own = sum(file.size for file in artifact.files.values())
    return {
        "seconds": (record.get("seconds") or 0.0) + parts.get("seconds", 0.0),
        "bytes": own + parts.get("bytes", 0),
        "peak_mb": max(record.get("peak_mb") or 0.0, parts.get("peak_mb", 0.0)),
        "parts": parts.get("count", 1),
    }


def missing(stages: Iterable[S], store: ArtifactStore) -> list[S]:
    """Return the stages that the store does not hold, each once: arms may share some."""
    once = {stage.address: stage for stage in stages}
    return [stage for address, stage in once.items() if store.find(address) is None]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return a random stream of its own for each purpose, so that no stage shifts another's."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])
