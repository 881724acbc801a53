"""What models of several kinds of input take, and one vector of what they take only in parts.

    str -> {text}: what looks like a path or URL is read as text, not opened
    models that read images and texts together (Qwen2-VL)  -> as it is; frames are several images
    models that read either (CLIP)                         -> each part by itself, vectors averaged

Legend: D width.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.inputs import ModelInput

Vectors = npt.NDArray[np.float32]


@cache
def read_frames_as_images() -> None:
    """Let vision-language models be loaded where torchvision, which their videos need, is not.

    Processors of the Qwen2-VL and InternVL families are made of one for texts, one for images and
    one for videos; the last needs torchvision. Here a video is a list of images, so it is left out.
    """
    from transformers.processing_utils import ProcessorMixin  # noqa: PLC0415 - slow to import
    from transformers.utils import is_torchvision_available  # noqa: PLC0415 - likewise

    if is_torchvision_available():
        return
    found = ProcessorMixin.get_attributes.__func__

    def without_videos(processor: Any) -> list[str]:
        return [name for name in found(processor) if name != "video_processor"]

    ProcessorMixin.get_attributes = classmethod(without_videos)


def see_as_trained(model: Any) -> None:
    """Have a model's processor prepare texts and pictures as the architecture needs them.

    sentence-transformers pads texts to the longest of a batch. SigLIP takes a text's vector from
    its last place, padding or not, and was trained on texts of one length without a mask
    (arXiv 2303.15343): otherwise a text's vector would hang on what it is embedded with.

    InternVL cuts a picture into up to 12 tiles, and a gradient that is cached row by row could not
    tell whose they are: here a picture is one tile, as frames of a video are.

    Saved with the model, and loaded back.
    """
    module = model[0]
    config: Any = getattr(getattr(module, "model", None), "config", None)
    kind = getattr(config, "model_type", "")
    if kind in ("siglip", "siglip2"):
        places = config.text_config.max_position_embeddings
        _process(module, "text", padding="max_length", max_length=places, padding_side="right")
        _process(module, "text", return_attention_mask=False)
    elif kind == "internvl":
        _process(module, "image", crop_to_patches=False)


def _process(module: Any, modality: str, **settings: Any) -> None:
    before = module.processing_kwargs
    module.processing_kwargs = {**before, modality: {**before.get(modality, {}), **settings}}


def takes_media(model: Any) -> bool:
    """Say whether a sentence-transformers model knows other inputs than texts."""
    return any(kind == "image" or "image" in kind for kind in _kinds(model))


def takes_together(model: Any) -> bool:
    """Say whether a model reads an image and a text as one input."""
    return any(kind == "message" or isinstance(kind, tuple) for kind in _kinds(model))


def wrapped(item: ModelInput) -> dict[str, Any]:
    """Return an input that says what is what: a plain string may be taken for a path and opened."""
    return {"text": item} if isinstance(item, str) else item


def encode(
    model: Any,
    items: Sequence[ModelInput],
    forward: Callable[[Sequence[ModelInput]], Vectors],
) -> Vectors:
    """Embed inputs of any kinds.

    Where the model reads either images or texts, an input of both is the mean of both unit vectors,
    and a video that of its frames' (late fusion, as CLIP is used on MMEB: arXiv 2410.05160).

    Parameters
    ----------
    forward
        Embeds inputs of one kind.

    Returns
    -------
    ndarray
        float32, len(items) x D; not of unit length.
    """
    inputs = [wrapped(item) for item in items]
    if takes_together(model):
        return forward(inputs)
    texts = [({"text": item["text"]}, row) for row, item in enumerate(inputs) if "text" in item]
    images = [
        ({"image": picture}, row)
        for row, item in enumerate(inputs)
        for picture in _pictures(item.get("image", []))
    ]
    means = [_mean_by_row(forward, part, len(inputs)) for part in (images, texts) if part]
    return np.asarray(np.sum(means, axis=0), np.float32)


def _kinds(model: Any) -> Sequence[Any]:
    found: Sequence[Any] = getattr(model, "modalities", None) or ["text"]
    return found


def _pictures(image: Any) -> Sequence[Any]:
    return image if isinstance(image, list) else [image]


def _mean_by_row(
    forward: Callable[[Sequence[ModelInput]], Vectors],
    parts: Sequence[tuple[dict[str, Any], int]],
    rows: int,
) -> Vectors:
    """Return the unit mean of each row's parts, and zero for a row that has none."""
    vector_PD = unit(forward([part for part, _ in parts]))
    sum_ND = np.zeros((rows, vector_PD.shape[1]), np.float32)
    np.add.at(sum_ND, [row for _, row in parts], vector_PD)
    return unit(sum_ND)


def unit(vector_ND: Vectors) -> Vectors:
    """Return unit vectors; zero, of a text without a known token, stays zero."""
    norm_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return np.asarray(vector_ND / np.where(norm_N1 == 0, 1, norm_N1), np.float32)
