"""A small image-text student: texts by their tokens, pictures by a convolutional network.

    {"text": ...} or a string -> WordVectors:  mean of all-MiniLM-L6-v2's token vectors --+
                                                                                          +-> 384-d
    PIL image -> grey square, ink is 1 -> GlyphEncoder: convolutions, one linear layer ---+

Both are modules of one SentenceTransformer behind a :class:`MediaRouter`, which goes by what the
inputs are. sentence-transformers' own takes a string that looks like a path or a URL for the medium
it names, and models open that; here a string is text, whatever it says, and only PIL images are
images.

Normalisation is by groups of channels within one picture: statistics of a batch would let rows
see which others they were mined with.

sentence-transformers loads no module of other packages unless told to trust the folder's code, so
:func:`load_glyph_student` puts a saved student together from the modules that are known here.

Legend: B rows of a batch, L tokens, S side of the square in pixels, C channels,
D width.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Router
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn

from b3_core import packaged
from b3_core.errors import InputError

VERSION = 1

SIDE = 48
CHANNELS = 32  # of the first layer; each of the next three has twice as many
DIM = 384  # MiniLM's
_GROUPS = 8
_WEIGHTS = "model.safetensors"
_PARTS = {"text": "text_0_WordVectors", "image": "image_0_GlyphEncoder"}  # as Router names them


class WordVectors(StaticEmbedding):  # type: ignore[misc]
    """A static embedding that takes ``{"text": ...}`` as well as strings.

    Its token ids have a row a text: a cached gradient cuts batches by rows, and the flat ids of the
    base class would be cut in the middle of texts, without a word.
    """

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Tokenise texts, ``prompt`` put before each, into ``input_ids``: B x L."""
        texts = [each["text"] if isinstance(each, Mapping) else each for each in inputs]
        encodings = self.tokenizer.encode_batch(
            [(prompt or "") + text for text in texts], add_special_tokens=False
        )
        rows = [torch.tensor(encoding.ids, dtype=torch.long) for encoding in encodings]
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, True, self._padding)}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, B x D; of a text without a token, zeros."""
        features["sentence_embedding"] = nn.functional.embedding_bag(
            features["input_ids"], self.embedding.weight, mode="mean", padding_idx=self._padding
        )
        return features

    @property
    def _padding(self) -> int:
        return int(self.tokenizer.token_to_id("[PAD]"))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Read a saved module back, from a local folder only."""
        folder = Path(model_name_or_path, subfolder)
        weights = load_file(folder / _WEIGHTS)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(tokenizer, embedding_weights=weights["embedding.weight"])


def has_flat_tokens(model: SentenceTransformer) -> bool:
    """Say whether a batch's tokens are one flat list with offsets, as a static embedding's are."""
    first = getattr(model, "_orig_mod", model)[0]
    static = [part for part in first.modules() if isinstance(part, StaticEmbedding)]
    return any(not isinstance(part, WordVectors) for part in static)


class GlyphEncoder(InputModule):  # type: ignore[misc]
    """A convolutional network for small drawings in black and white.

    Four convolutions, each halving the picture, and a linear layer that sees where things are.

    Parameters
    ----------
    dim
        Width D of its vectors.
    side
        S: pictures are fitted into a square of so many pixels, a multiple of 16.
    channels
        C of the first layer.
    """

    config_keys = ["dim", "side", "channels"]  # noqa: RUF012 - the base class's attribute
    modalities = ["image"]  # noqa: RUF012 - likewise

    def __init__(self, dim: int = DIM, side: int = SIDE, channels: int = CHANNELS) -> None:
        super().__init__()
        self.dim, self.side, self.channels = dim, side, channels
        width_L = [1, *(channels * 2**layer for layer in range(4))]
        layers: list[nn.Module] = []
        for layer in range(4):
            size = 5 if layer == 0 else 3
            layers += [
                nn.Conv2d(width_L[layer], width_L[layer + 1], size, stride=2, padding=size // 2),
                nn.GroupNorm(_GROUPS, width_L[layer + 1]),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(width_L[-1] * (side // 16) ** 2, dim)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Turn PIL images, or ``{"image": ...}`` of them, into ``pixel_values``: B x 1 x S x S.

        Raises
        ------
        InputError
            Something else is among them, such as a path: nothing is opened here.
        """
        images = [each["image"] if isinstance(each, Mapping) else each for each in inputs]
        pixel_BSS = np.stack([ink(image, self.side) for image in images])
        return {"pixel_values": torch.from_numpy(pixel_BSS)[:, None]}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``sentence_embedding``, B x D, not normalised."""
        hidden_BCHW = self.layers(features["pixel_values"])
        features["sentence_embedding"] = self.linear(hidden_BCHW.flatten(1))
        return features

    def get_embedding_dimension(self) -> int:
        """Return D."""
        return self.dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors``, whatever ``safe_serialization`` says."""
        self.save_config(output_path)
        save_file(
            {name: part.contiguous() for name, part in self.state_dict().items()},
            Path(output_path, _WEIGHTS),
        )

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        """Read a saved module back, from a local folder only."""
        folder = Path(model_name_or_path, subfolder)
        module = cls(**json.loads((folder / cls.config_file_name).read_text("utf-8")))
        module.load_state_dict(load_file(folder / _WEIGHTS))
        return module


class MediaRouter(Router):  # type: ignore[misc]
    """Sends texts one way and images another, and never takes a text for the name of a file."""

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        modality: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare inputs, which are all texts or all images.

        Raises
        ------
        InputError
            They are some of both, or neither.
        """
        kinds = {_kind(each) for each in inputs}
        if len(kinds) != 1:
            raise InputError(
                "a batch holds texts as well as images",
                expected="one of them",
                remedy="encode texts and images in calls of their own",
            )
        found = kinds.pop()
        features = self.sub_modules[found][0].preprocess(inputs, prompt=prompt)
        return {**features, "modality": found}


def glyph_student(seed: int) -> SentenceTransformer:
    """Return an untrained image-text student: pretrained token vectors, random convolutions.

    Parameters
    ----------
    seed
        Decides the weights of the convolutions; the global random state is left as it was.

    Raises
    ------
    InputError
        The package that holds the token vectors is not installed.
    """
    words = packaged.token_student()[0]
    text = WordVectors(words.tokenizer, embedding_weights=words.embedding.weight.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = GlyphEncoder(text.embedding_dim)
    return _student(text, image)


def is_glyph_student(folder: Path) -> bool:
    """Say whether a folder holds a student of this module."""
    try:
        types = _types(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(types == dict(zip(_PARTS.values(), map(_class, _CLASSES), strict=True)))


def load_glyph_student(folder: Path) -> SentenceTransformer:
    """Load a student that was saved with ``save_pretrained``; no code in the folder is run.

    Raises
    ------
    InputError
        The folder holds something else.
    """
    if not is_glyph_student(folder):
        raise InputError(
            f"{folder} holds no image-text student",
            expected=f"a folder saved from {__name__}.glyph_student",
            remedy="load it with SentenceTransformer(folder)",
        )
    text, image = (
        part.load(str(folder), subfolder=name)
        for name, part in zip(_PARTS.values(), _CLASSES, strict=True)
    )
    model = _student(text, image)
    saved = json.loads((folder / "config_sentence_transformers.json").read_text("utf-8"))
    model.prompts = saved["prompts"]
    model.default_prompt_name = saved["default_prompt_name"]
    return model


def ink(image: Any, side: int) -> npt.NDArray[np.float32]:
    """Fit an image into a white square and return how dark it is: 1 for black, 0 for white.

    Returns
    -------
    ndarray of shape (side, side), float32

    Raises
    ------
    InputError
        It is no PIL image.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415 - an extra

    if not isinstance(image, Image.Image):
        raise InputError(
            f"an image is given as {type(image).__name__}",
            expected="a PIL image",
            remedy='decode it first; give a text as {"text": ...}',
        )
    grey = _on_white(image).convert("L")
    if grey.size != (side, side):
        grey = ImageOps.pad(grey, (side, side), method=Image.Resampling.BOX, color=255)
    return 1 - np.asarray(grey, dtype=np.float32) / np.float32(255)


def _on_white(image: Any) -> Any:
    """Put what is transparent on white."""
    from PIL import Image  # noqa: PLC0415 - an extra

    if not image.has_transparency_data:
        return image
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)


def _kind(each: Any) -> str:
    if isinstance(each, str):
        return "text"
    if isinstance(each, Mapping):
        if set(each) not in ({"text"}, {"image"}):
            raise InputError(
                f"an input has {', '.join(sorted(map(str, each))) or 'nothing'}",
                expected="text or image: this student reads no text beside an image",
            )
        return str(next(iter(each)))
    return "image"


def _student(text: WordVectors, image: GlyphEncoder) -> SentenceTransformer:
    router = MediaRouter({"text": [text], "image": [image]}, default_route="text")
    return SentenceTransformer(modules=[router], device="cpu", similarity_fn_name="cosine")


_CLASSES = (WordVectors, GlyphEncoder)


def _class(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _types(folder: Path) -> Any:
    """Return the classes of a saved student's parts, by the names of their folders."""
    (module,) = json.loads((folder / "modules.json").read_text("utf-8"))
    if module["type"] != _class(MediaRouter) or module["path"]:
        return None
    return json.loads((folder / MediaRouter.config_file_name).read_text("utf-8"))["types"]
