"""Published architectures with random weights: what they embed hangs on the input alone."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    InternVLProcessor,
    Qwen2_5_VLProcessor,
    SiglipProcessor,
)
from transformers.utils import is_torchvision_available

from b3_core import multimodal, student, teacher
from b3_core.config import LoraSpec, TeacherSpec
from b3_core.errors import InputError
from b3_core.teacher import Teacher
from tests import tiny

WORDS = ["red", "green", "blue", "dark", "light", "grey", "teal", "pink"]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": lambda folder: tiny.clip(WORDS, folder),
    "siglip": lambda folder: tiny.siglip(WORDS, folder),
    "siglip2": tiny.siglip2,
    "qwen2_vl": tiny.qwen2_vl,
    "qwen2_5_vl": tiny.qwen2_5_vl,
    "internvl": tiny.internvl,
}
Teachers = Callable[[str], Teacher]
DUAL = ("clip", "siglip", "siglip2")
DECODERS = ("qwen2_vl", "qwen2_5_vl", "internvl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("architectures")
    return {name: make(root / name) for name, make in MAKERS.items()}


def teacher_of(folder: Path, **settings: object) -> Teacher:
    pooling = "lasttoken" if folder.parts[-1] in DECODERS else None
    return Teacher(TeacherSpec(model=str(folder), pooling=pooling, **settings))


@pytest.fixture(scope="module")
def teachers(folders: dict[str, Path]) -> Teachers:
    """Loaded once, for who only asks."""
    return functools.cache(lambda name: teacher_of(folders[name]))


def some(names: Iterable[str]) -> list[object]:
    """All names; in the fast tests one of each family."""
    slow = ("siglip", "qwen2_vl")
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


def drawing(seed: int, size: tuple[int, int]) -> Image.Image:
    pixel = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixel).resize(size)


INPUTS = [
    {"text": "red"},
    {"text": "green blue dark light grey"},
    {"image": drawing(0, (40, 30))},
    {"image": drawing(1, (70, 30))},
    {"image": drawing(2, (30, 50)), "text": "teal"},
    {"image": drawing(3, (33, 33)), "text": "pink red red red"},
    {"image": [drawing(4 + frame, (32, 24)) for frame in range(3)]},
    {"image": [drawing(7, (32, 24))] * 2, "text": "grey"},
]


@pytest.mark.parametrize("name", some(MAKERS))
def test_a_vector_hangs_on_its_input_alone(teachers: Teachers, name: str) -> None:
    model = teachers(name)
    together_ND = model.encode(INPUTS)
    assert np.isfinite(together_ND).all()
    np.testing.assert_allclose(np.linalg.norm(together_ND, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.encode(INPUTS), together_ND)
    alone_ND = np.vstack([model.encode([item]) for item in INPUTS])
    np.testing.assert_allclose(alone_ND, together_ND, atol=2e-6)
    np.testing.assert_allclose(model.encode(INPUTS[::-1])[::-1], together_ND, atol=2e-6)
    apart = np.abs(together_ND[:, None] - together_ND[None]).max(axis=2)
    assert apart[~np.eye(len(INPUTS), dtype=bool)].min() > 1e-3  # none is read as another


@pytest.mark.parametrize("name", DUAL)
def test_dual_encoders_average_what_they_read_apart(teachers: Teachers, name: str) -> None:
    model = teachers(name)
    both, text, image = model.encode(
        [INPUTS[4], {"text": INPUTS[4]["text"]}, {"image": INPUTS[4]["image"]}]
    )
    expected = (text + image) / np.linalg.norm(text + image)
    np.testing.assert_allclose(both, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglip_reads_texts_padded_as_it_was_trained(
    folders: dict[str, Path], teachers: Teachers, name: str
) -> None:
    # As its authors' example has it: the places that are left are padding, and there is no mask.
    model = AutoModel.from_pretrained(folders[name])
    tokenizer = AutoProcessor.from_pretrained(folders[name]).tokenizer
    ids = tokenizer(["red"])["input_ids"][0]
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (24 - len(ids))])
    with torch.no_grad():
        expected = model.get_text_features(padded).pooler_output[0].numpy()
    found = teachers(name).encode([{"text": "red"}])[0]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_siglip_has_texts_of_one_length(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="padded to 24 tokens.*max_length"):
        teacher_of(folders["siglip"], max_length=4)


@pytest.mark.parametrize("name", some(DECODERS))
def test_the_side_of_padding_says_nothing(folders: dict[str, Path], name: str) -> None:
    model = teacher_of(folders[name])
    found = []
    for side in ("left", "right"):
        model.model[0].tokenizer.padding_side = side
        model.model[0].processing_kwargs["text"] = {"padding_side": side}
        tokens = model.model.preprocess(INPUTS[4:])
        ends = tokens["attention_mask"][:, -1 if side == "right" else 0]
        assert not ends.all()  # some are padded, on that side
        found.append(model.encode(INPUTS))
    np.testing.assert_allclose(*found, atol=2e-6)


@pytest.mark.parametrize("name", some(DECODERS))
def test_decoders_are_pooled_by_their_last_token(teachers: Teachers, name: str) -> None:
    model = teachers(name)
    features = model.model.preprocess([INPUTS[4]])
    with torch.no_grad():
        token_LD = model.model[0](dict(features))["token_embeddings"][0].numpy()
    expected = token_LD[-1] / np.linalg.norm(token_LD[-1])
    np.testing.assert_allclose(model.encode([INPUTS[4]])[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", some(MAKERS))
def test_adapters_learn_wherever_they_are(folders: dict[str, Path], name: str) -> None:
    model = teacher.load_model(str(folders[name]))
    student.put_in_adapters(model, LoraSpec(r=2, dropout=0.0))
    names = [key for key, part in model.named_parameters() if part.requires_grad]
    assert names and all("lora_" in key for key in names)
    torch.manual_seed(0)
    for key, part in model.named_parameters():
        if "lora_B" in key:  # zero at first, and then what is before it has no gradient
            torch.nn.init.normal_(part)
    columns = [[{"text": "red"}, {"text": "blue dark"}], [INPUTS[2], INPUTS[3]]]
    vectors = [model(model.preprocess(column))["sentence_embedding"] for column in columns]
    torch.cat(vectors).square().sum().backward()
    still = [key for key, part in model.named_parameters() if "lora_" in key and part.grad is None]
    assert still == []


@pytest.mark.parametrize("name", ["siglip", "internvl"])
def test_what_was_set_is_saved_with_a_model(teachers: Teachers, name: str, tmp_path: Path) -> None:
    model = teachers(name).model
    model.save_pretrained(str(tmp_path), create_model_card=False)
    again = Teacher(TeacherSpec(model=str(tmp_path)))
    np.testing.assert_array_equal(again.encode(INPUTS), teachers(name).encode(INPUTS))
    assert again.model[0].processing_kwargs == model[0].processing_kwargs


@pytest.mark.skipif(is_torchvision_available(), reason="it prepares videos")
def test_processors_lose_their_videos_once() -> None:
    multimodal.read_frames_as_images()
    multimodal.read_frames_as_images()
    for kind in (InternVLProcessor, Qwen2_5_VLProcessor, SiglipProcessor):
        assert kind.get_attributes() == ["image_processor", "tokenizer"]
