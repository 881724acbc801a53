"""What a store still holds of the artifacts that a dataset of a manifest stands on.

    head of the manifest -> addresses -> artifacts, or a sentence for each that is gone

Arrays are mapped, not loaded: whoever looks at a few thousand rows reads a few thousand rows.

Legend: N rows, D width of a vector, M ranks, E directed edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Address, Artifact
from b3_core.errors import B3Error, reason
from b3_core.labels import LabelRanks
from b3_core.store import ArtifactStore

Array = npt.NDArray[Any]


class Sides(NamedTuple):
    """The teacher's vectors, float16 as they are stored."""

    query_ND: Array
    positive_ND: Array


class Edges(NamedTuple):
    """The window graph: the neighbours of row i are ``indices[indptr[i]:indptr[i + 1]]``."""

    indptr: Array
    indices_E: Array


@dataclass
class Upstream:
    """One dataset of a manifest, and what is there of its making."""

    store: ArtifactStore
    entry: Mapping[str, Any]
    """The dataset's part of the head."""
    lineage: Mapping[str, Any]
    """Of the head: store path -> files."""
    gone: list[str] = field(default_factory=list)
    """Sentences: what could not be read, and what the report lacks for it."""

    @property
    def name(self) -> str:
        """The dataset's."""
        return str(self.entry["name"])

    @property
    def rows(self) -> int:
        """N."""
        return int(self.entry["rows"])

    @property
    def labelled(self) -> bool:
        """Say whether it is a classification: ranked by labels, without windows of rows."""
        return f"{self.name}/labels/{self.entry['ranks']}" in self.lineage

    def addresses(self, stage: str) -> list[Address]:
        """Return the artifacts of a stage that the manifest stands on."""
        prefix = f"{self.name}/{stage}/"
        return [
            Address(self.name, stage, path.removeprefix(prefix))
            for path in self.lineage
            if path.startswith(prefix)
        ]

    def find(self, stage: str) -> list[Artifact]:
        """Return those of them that the store holds whole."""
        return [artifact for at in self.addresses(stage) if (artifact := self.at(at))]

    def at(self, address: Address) -> Artifact | None:
        """Return an artifact, or None where it is gone or its record is not what was written."""
        try:
            return self.store.find(address)
        except B3Error:
            return None

    @cached_property
    def pairs(self) -> Artifact | None:
        """The rows' texts and groups."""
        found = self.at(Address(self.name, "pairs", self.entry["pairs"]))
        if found is None:
            self.lack("pairs", "no duplicates are counted and no batch can be read")
        return found

    @cached_property
    def sides(self) -> Sides | None:
        """The teacher's vectors, mapped."""
        try:
            (artifact,) = self.find("embeddings")
            sides = Sides(*(_mapped(artifact, f"{name}.npy") for name in ("query", "positive")))
            if {len(side) for side in sides} != {self.rows} or sides[0].shape != sides[1].shape:
                raise ValueError(f"vectors of shape {sides[0].shape} for {self.rows} rows")
        except (ValueError, B3Error) as error:
            self.lack("embeddings", "no similarity is measured", error)
            return None
        return sides

    @cached_property
    def ranks(self) -> Array | None:
        """``neighbour_NM``, mapped; None for a classification, which has :attr:`labels`."""
        if self.labelled:
            return None
        try:
            (artifact,) = self.find("ranks")
            row_NM = _mapped(artifact, "neighbour.npy")
            if row_NM.ndim != 2 or len(row_NM) != self.rows:
                raise ValueError(f"ranks of shape {row_NM.shape} for {self.rows} rows")
        except (ValueError, B3Error) as error:
            self.lack("ranks", "no partner is known by its rank", error)
            return None
        return row_NM

    @cached_property
    def labels(self) -> LabelRanks | None:
        """Which labels each row is near, of a classification."""
        if not self.labelled:
            return None
        try:
            (artifact,) = self.find("labels")
            ranks = LabelRanks.load(artifact)
            if len(ranks.label_N) != self.rows:
                raise ValueError(f"labels of {len(ranks.label_N)} rows for {self.rows}")
        except (ValueError, B3Error) as error:
            self.lack("labels", "no partner is known by its label", error)
            return None
        return ranks

    def communities(self, variant: int) -> Artifact | None:
        """Return the communities of one variant of the curriculum."""
        address = Address(self.name, "communities", self.entry["communities"][variant])
        return self.at(address)

    def graph_of(self, communities: Artifact) -> Artifact | None:
        """Return the graph that communities were found in."""
        fingerprint = communities.record["lineage"].get("graph", "")
        return self.at(Address(self.name, "graph", fingerprint))

    def edges(self, graph: Artifact) -> Edges | None:
        """Map the window graph."""
        try:
            return Edges(
                _mapped(graph, "attract/indptr.npy"), _mapped(graph, "attract/indices.npy")
            )
        except (ValueError, B3Error):
            return None

    def lack(self, what: str, effect: str, error: Exception | None = None) -> None:
        """Note what is missing, once."""
        known = error is not None and not str(error).startswith("not enough values")
        why = f" ({reason(error)})" if known and error is not None else ""
        sentence = f"{self.name}: the {what} are not in the store{why}: {effect}."
        if sentence not in self.gone:
            self.gone.append(sentence)


def _mapped(artifact: Artifact, name: str) -> Array:
    array: Array = np.load(artifact.path(name), mmap_mode="r", allow_pickle=False)
    return array
