"""How a static model is fast: every text tokenised once, every token's gradient added up once.

    texts -> TokenTable (flat token ids) -> means: vectors
    StaticEmbedding's bag -> SparseMean: the same means, gradients a tenth the size

Tokenising takes longer than all the rest, a plan visits each row once an epoch, and arms and seeds
share their texts: the last few tables are kept.
A plain sparse bag keeps one gradient vector a token *occurrence*, which the optimizer then sorts
and adds up.

Legend: N rows, T token occurrences of all rows, t of one batch, U different tokens among them,
V tokens of the vocabulary, D width, B rows of a batch.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import nn

_BLOCK = 4096  # rows averaged at a time
_TOKENISED = 512  # texts tokenised at a time: the tokenizer keeps 100 bytes and more a token


def is_static(model: SentenceTransformer) -> bool:
    """Say whether a model's only weights are those of a static embedding."""
    if not isinstance(model[0], StaticEmbedding):
        return False
    return all(module is model[0] or not list(module.parameters()) for module in model)


class SparseMean(nn.EmbeddingBag):  # type: ignore[misc]
    """The mean of each bag's embeddings, with a sparse gradient of one row a different token."""

    @classmethod
    def of(cls, bag: nn.EmbeddingBag) -> Self:
        """Take a bag's weights over; the tensor is shared."""
        return cls(bag.num_embeddings, bag.embedding_dim, sparse=True, _weight=bag.weight.data)

    def forward(self, input_t: torch.Tensor, offsets_B: torch.Tensor) -> torch.Tensor:
        """Return the means, B x D; bag ``b`` begins at ``offsets_B[b]``, an empty one is zero."""
        token_U, place_t = torch.unique(input_t, return_inverse=True)
        row_UD = nn.functional.embedding(token_U, self.weight, sparse=True)
        return nn.functional.embedding_bag(place_t, row_UD, offsets_B, mode="mean")


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token ids of all rows, one row after another."""

    token_T: npt.NDArray[np.int32]
    start_N: npt.NDArray[np.int64]
    """Where each row begins, and at the end T: N + 1 values."""

    @staticmethod
    def of(
        tokenizer: Tokenizer, texts: Sequence[pa.ChunkedArray], prompt: str = ""
    ) -> "TokenTable":
        """Tokenise all texts, ``prompt`` put before each, unless that was done just now."""
        digest = hashlib.blake2b(tokenizer.to_str().encode())
        for column in texts:
            for text in column.to_pylist():
                digest.update(text.encode() + b"\0")
        return _tokenised(_Texts(digest.hexdigest(), prompt, tokenizer, tuple(texts)))

    def bags(self, row_B: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' token ids and where each row begins among them, as int64 tensors."""
        parts = [self.token_T[self.start_N[row] : self.start_N[row + 1]] for row in row_B]
        offset_B = np.cumsum([0, *map(len, parts[:-1])])
        token_t = np.concatenate(parts).astype(np.int64)
        return torch.from_numpy(token_t), torch.from_numpy(offset_B)


@dataclass(frozen=True)
class _Texts:
    """Texts to tokenise, equal to others of the same content."""

    digest: str
    prompt: str
    tokenizer: Tokenizer = field(compare=False)
    columns: tuple[pa.ChunkedArray, ...] = field(compare=False)


@lru_cache(maxsize=4)  # queries and positives, of training and of evaluation
def _tokenised(texts: _Texts) -> TokenTable:
    tokens, counts = [], [0]
    for column in texts.columns:
        for start in range(0, len(column), _TOKENISED):
            block = [texts.prompt + text for text in column.slice(start, _TOKENISED).to_pylist()]
            for encoding in texts.tokenizer.encode_batch(block, add_special_tokens=False):
                tokens.append(np.array(encoding.ids, dtype=np.int32))
                counts.append(len(encoding.ids))
    return TokenTable(np.concatenate([np.zeros(0, np.int32), *tokens]), np.cumsum(counts))


def means(model: SentenceTransformer, table: TokenTable) -> npt.NDArray[np.float32]:
    """Return the mean of each row's token vectors, N x D, not normalised."""
    rows = len(table.start_N) - 1
    mean_ND = np.zeros((rows, model[0].embedding.embedding_dim), np.float32)
    with torch.inference_mode():
        for start in range(0, rows, _BLOCK):
            row_B = range(start, min(start + _BLOCK, rows))
            mean_ND[start : row_B.stop] = model[0].embedding(*table.bags(row_B)).numpy()
    return mean_ND
