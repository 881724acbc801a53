"""Items of a plan's dataset turned into what a model takes.

Legend: B rows of a batch, H hard negatives a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from b3_core.errors import InputError
from b3_core.inputs import ModelInput
from b3_core.slots import Marks, Slots
from b3_core.static import TokenTable


@dataclass(frozen=True, eq=False)
class TextCollator:
    """Turns items of slots into token ids, for a trainer that knows no columns of texts.

    Parameters
    ----------
    tokenizer
        A Hugging Face tokenizer with a padding token.
    query_prompt, positive_prompt
        Put before queries; before positives and hard negatives.
    max_length
        Texts are cut to so many tokens; by default to what the tokenizer says of its model.
    """

    tokenizer: Any
    query_prompt: str = ""
    positive_prompt: str = ""
    max_length: int | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Tokenise a batch, each column padded to its own longest text.

        Returns
        -------
        dict
            ``query_input_ids``, ``query_attention_mask`` (int64, B x tokens) and whatever else the
            tokenizer makes; the same of ``positive`` and every negative; and ``label``: groups,
            int64, B x (1 + H).

        Raises
        ------
        InputError
            A column has an image or a video.
        """
        batch: dict[str, torch.Tensor] = {}
        for name in (name for name in items[0] if name != "label"):
            prompt = self.query_prompt if name == "query" else self.positive_prompt
            tokens = self.tokenizer(
                [prompt + _text_of(item[name], name) for item in items],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            batch |= {f"{name}_{key}": values for key, values in tokens.items()}
        return {**batch, "label": torch.tensor([item["label"] for item in items])}


@dataclass(frozen=True, eq=False)
class TokenCollator:
    """Turns items with a column ``slot`` into the tokens of a static model, looked up by row.

    Tokenising takes longer than all the rest of a static model's training: here it is done once.
    """

    slots: Slots
    query: TokenTable
    positive: TokenTable
    negative: TokenTable | None = None
    """Of the hard negatives that rows came with."""
    marks: Marks | None = None
    """What labels are instead of groups."""
    valid_label_columns: Sequence[str] = ()  # the trainer asks; labels are made here

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Gather a batch under the names that sentence-transformers' own collator uses."""
        numbers = [feature["slot"] for feature in features]
        at_BX = self.slots.rows(numbers)
        marks = self.marks or self.slots.groups
        batch: dict[str, Any] = {"label": torch.as_tensor(marks(numbers))}
        own = [("query", self.query, 0), ("positive", self.positive, 0)]
        if self.negative is not None:
            own.append(("negative_0", self.negative, 0))
        hard = [(f"negative_{h}", self.positive, h) for h in range(1, at_BX.shape[1])]
        for name, table, column in own + hard:
            ids, offsets = table.bags(at_BX[:, column])
            batch[f"{name}_input_ids"], batch[f"{name}_offsets"] = ids, offsets
        return batch


def _text_of(item: ModelInput, column: str) -> str:
    """Return an input's text, where that is all there is."""
    if isinstance(item, str):
        return item
    if item.keys() != {"text"}:
        raise InputError(
            f"column {column} has images or videos, and a tokenizer reads texts alone",
            remedy="train with sentence-transformers' trainer",
        )
    return str(item["text"])
