"""Vectors of benchmarks, kept from one run to the next by what was embedded and by whom.

    keys, vectors of a few thousand items -> artifact <dataset>/kept-<encoder>/<of the keys>
    keys that are asked for -> those of all artifacts of that encoder, mapped -> vectors

A key names text, prompt and the bytes of a medium; an encoder, its weights and how much it sees. So
whatever changes, what is kept is never wrong, only of no use. An artifact is written whole a few
thousand items, so a run that is killed has lost no more than those. Vectors are float32, as they
were made: metrics are those of a run that keeps nothing.

Legend: U vectors of an artifact, D width.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Address, Artifact, canonical_json
from b3_core.store import ArtifactStore

VERSION = 1

_STAGE = "kept-"  # and then the encoder: of a stage, all artifacts are listed
_KEYS, _VECTORS = "keys.npy", "vectors.npy"

_Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KeptVectors:
    """What one encoder made of benchmarks, in the store (:class:`b3_core.evaluate.encoder.Memory`).

    Parameters
    ----------
    student
        Whose vectors they are: ``b3 gc`` collects them when that is gone.
    settings
        What else decides them: plain JSON.
    most_bytes
        Beyond it nothing more is kept.
    """

    store: ArtifactStore
    student: Address
    settings: Mapping[str, Any]
    most_bytes: int

    def take(self, keys: Sequence[str]) -> dict[str, _Vectors]:
        """Return the (D,) vectors of those keys that are there.

        Raises
        ------
        CorruptArtifactError
            What is stored is not what was written.
        """
        wanted: dict[int, list[str]] = {}
        for key in dict.fromkeys(keys):
            if key in self._places:
                wanted.setdefault(self._places[key][0], []).append(key)
        found: dict[str, _Vectors] = {}
        for number, those in wanted.items():
            vector_UD = _mapped(self._artifacts[number], _VECTORS)
            rows = [self._places[key][1] for key in those]
            found |= zip(those, np.array(vector_UD[rows]), strict=True)
        return found

    def keep(self, keys: Sequence[str], vector_UD: _Vectors) -> None:
        """Keep vectors, one a key, for as long as there is space."""
        size = vector_UD.nbytes
        if not keys or self._bytes + size > self.most_bytes:
            return
        named = hashlib.sha256("".join(keys).encode()).hexdigest()
        address = Address.of(
            self.student.dataset,
            self._stage,
            version=VERSION,
            settings={"keys": named},
            inputs={"student": self.student.fingerprint},
        )
        lineage = {"student": self.student.fingerprint}
        with self.store.draft(address, lineage=lineage, settings=self.settings) as draft:
            np.save(draft.path(_KEYS), np.array([list(bytes.fromhex(key)) for key in keys], "u1"))
            np.save(draft.path(_VECTORS), vector_UD.astype(np.float32, copy=False))
            draft.counts["vectors"] = len(keys)
        self._note(self.store.get(address))

    @cached_property
    def _stage(self) -> str:
        """Name the encoder by the bytes of its weights: a student made anew may have others."""
        files = self.store.get(self.student).files
        weights = {name: file.sha256 for name, file in files.items()}
        identity = canonical_json({"weights": weights, "settings": dict(self.settings)})
        return _STAGE + hashlib.sha256(identity).hexdigest()[:20]

    @cached_property
    def _artifacts(self) -> list[Artifact]:
        return self.store.artifacts(self.student.dataset, self._stage)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Artifact and row of every key."""
        return {
            bytes(key).hex(): (number, row)
            for number, artifact in enumerate(self._artifacts)
            for row, key in enumerate(_mapped(artifact, _KEYS))
        }

    @property
    def _bytes(self) -> int:
        return sum(artifact.files[_VECTORS].size for artifact in self._artifacts)

    def _note(self, artifact: Artifact) -> None:
        places = self._places  # of what is listed: before it is one more
        self._artifacts.append(artifact)
        number = len(self._artifacts) - 1
        keys = _mapped(artifact, _KEYS)
        places |= {bytes(key).hex(): (number, row) for row, key in enumerate(keys)}


def is_kept(address: Address) -> bool:
    """Say whether an artifact holds such vectors."""
    return address.stage.startswith(_STAGE)


def _mapped(artifact: Artifact, name: str) -> Any:
    return np.load(artifact.path(name), mmap_mode="r", allow_pickle=False)
