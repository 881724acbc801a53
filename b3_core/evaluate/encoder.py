"""What a benchmark asks of a model, and how each input is embedded once.

    items -> unique by text, medium and prompt -> those the memory has   -> taken from it
                                               -> the others, in chunks -> encoded, kept in it

Legend: N items, U unique ones, D width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError
from b3_core.media import Item, MediaError, MediaRoot
from b3_core.progress import Progress, silent

_CHUNK = 4096  # items encoded at a time: what a killed run loses

_Vectors = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A model: texts, images and videos to unit vectors of one width."""

    def encode_items(
        self,
        items: Sequence[Item],
        root: MediaRoot | None,
        *,
        prompt: str = "",
        progress: Progress = silent,
    ) -> _Vectors:
        """Embed items.

        Parameters
        ----------
        items
            Texts, media below ``root``, or both.
        root
            Where media are read; None where no item has one.
        prompt
            Goes before every text, also an empty one.
        progress
            Told how many items are done.

        Returns
        -------
        numpy.ndarray
            float32, (N, D), of unit length.

        Raises
        ------
        MediaError
            A medium cannot be read; its file is named.
        """


class Memory(Protocol):
    """Vectors of one encoder, kept from one run to the next by content."""

    def take(self, keys: Sequence[str]) -> dict[str, _Vectors]:
        """Return the (D,) vectors of those keys that are there."""

    def keep(self, keys: Sequence[str], vector_UD: _Vectors) -> None:
        """Keep vectors, one a key."""


@dataclass
class Forgetful:
    """Keeps nothing: the default."""

    def take(self, keys: Sequence[str]) -> dict[str, _Vectors]:
        """Return nothing."""
        return {}

    def keep(self, keys: Sequence[str], vector_UD: _Vectors) -> None:
        """Let go of them."""


@dataclass
class Embedder:
    """An encoder with its media and its memory.

    Parameters
    ----------
    encoder
        Asked for what the memory does not have.
    root
        Where media are; None: there are none.
    memory
        Of this encoder alone: keys do not name it.
    """

    encoder: Encoder
    root: MediaRoot | None = None
    memory: Memory = field(default_factory=Forgetful)

    def embed(
        self, items: Sequence[Item], *, prompt: str = "", progress: Progress = silent
    ) -> _Vectors:
        """Embed items, equal ones once.

        Returns
        -------
        numpy.ndarray
            float32, (N, D).

        Raises
        ------
        InputError
            The encoder returned something else than one finite vector an item, or vectors of
            another width than before.
        MediaError
            A medium cannot be read.
        """
        first = {item: at for at, item in reversed(list(enumerate(items)))}
        unique = sorted(first, key=first.__getitem__)
        where = {item: at for at, item in enumerate(unique)}
        parts = []
        for start in range(0, len(unique), _CHUNK):
            parts.append(self._chunk(unique[start : start + _CHUNK], prompt))
            progress(min(start + _CHUNK, len(unique)), len(unique))
        vector_UD = _joined(parts)
        return vector_UD[[where[item] for item in items]]

    def _chunk(self, items: Sequence[Item], prompt: str) -> _Vectors:
        if isinstance(self.memory, Forgetful):  # no need to read media twice, once for their keys
            return self._encoded(items, prompt)
        keys = [self._key(item, prompt) for item in items]
        had = self.memory.take(keys)
        new = [at for at, key in enumerate(keys) if key not in had]
        if new:
            vector_UD = self._encoded([items[at] for at in new], prompt)
            self.memory.keep([keys[at] for at in new], vector_UD)
            had = {**had, **{keys[at]: vector_UD[n] for n, at in enumerate(new)}}
        return _joined([had[key][None] for key in keys])

    def _encoded(self, items: Sequence[Item], prompt: str) -> _Vectors:
        vector_UD = np.asarray(self.encoder.encode_items(items, self.root, prompt=prompt))
        if vector_UD.ndim != 2 or len(vector_UD) != len(items):
            raise InputError(
                f"the encoder returned an array of shape {vector_UD.shape} for {len(items)} items",
                expected="one vector an item",
            )
        return vector_UD.astype(np.float32, copy=False)

    def _key(self, item: Item, prompt: str) -> str:
        """Name an item by its content: of a medium by its bytes, not by its file's name."""
        digest = hashlib.blake2b(digest_size=16)
        for text in (prompt, item.text, item.kind):
            content = text.encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
        if item.kind:
            if self.root is None:
                raise InputError(f"'{item.file}' is a medium, and there is no media root")
            try:
                digest.update(self.root.read(item.file, kind=item.kind))
            except MediaError as error:  # it says what is wrong, not with what
                raise MediaError(f"'{item.file}' {error}") from error
        return digest.hexdigest()


def _joined(parts: Sequence[_Vectors]) -> _Vectors:
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise InputError(
            f"vectors of one encoder have different widths: {sorted(widths)}",
            remedy="empty its memory: it may hold those of another model",
        )
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
