"""The image-text student: what it takes, what it never opens, and that it trains and comes back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)

from b3_core import packaged, vision
from b3_core.errors import InputError
from b3_core.loss import GroupedInfoNCE


@pytest.fixture(scope="module")
def student() -> SentenceTransformer:
    return vision.glyph_student(0)


def drawing(seed: int, side: int = 48) -> Image.Image:
    grey = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    return Image.fromarray(grey)


def test_strings_dicts_and_images(student: SentenceTransformer) -> None:
    texts = student.encode(["a cat", {"text": "a cat"}, "a dog"])
    assert texts.shape == (3, vision.DIM)
    assert np.array_equal(texts[0], texts[1])
    assert not np.allclose(texts[0], texts[2])
    images = student.encode([drawing(0), {"image": drawing(0)}, drawing(1)])
    assert np.allclose(images[0], images[1], atol=1e-6)
    assert not np.allclose(images[0], images[2], atol=1e-3)
    assert student.get_embedding_dimension() == vision.DIM


def test_a_text_is_the_mean_of_pretrained_token_vectors(student: SentenceTransformer) -> None:
    plain = packaged.token_student()
    assert np.array_equal(student.encode({"text": "tea pot"}), plain.encode("tea pot"))
    assert np.array_equal(student.encode("pot", prompt="tea "), plain.encode("tea pot"))
    texts = ["tea pot", "", "a tea pot on the table", "pot"]  # of several lengths in one batch
    assert np.allclose(student.encode(texts), plain.encode(texts), atol=1e-6)


def test_a_picture_does_not_hang_on_its_batch(student: SentenceTransformer) -> None:
    student.train()  # as in training, where norms over the batch would differ
    pixels = student.preprocess([drawing(i) for i in range(4)])
    together = student(dict(pixels))["sentence_embedding"]
    alone = student({**pixels, "pixel_values": pixels["pixel_values"][:1]})["sentence_embedding"]
    student.eval()
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


def test_no_text_is_opened(
    student: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret.png"
    drawing(3).save(file)
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a))
    monkeypatch.setattr("socket.socket.connect", lambda *a, **k: opened.append(a))
    texts = [str(file), "http://127.0.0.1/a.png", "data:image/png;base64,aaaa", "a.mp4"]
    for text in texts:
        for given in (text, {"text": text}):
            assert student.encode([given]).shape == (1, vision.DIM)
    encoded = student.encode([{"text": text} for text in texts])
    tokens = student[0].sub_modules["text"][0]
    expected = tokens(tokens.preprocess(texts))["sentence_embedding"].detach().numpy()
    assert np.allclose(encoded, expected, atol=1e-6)
    with pytest.raises(InputError, match="given as str.*PIL image"):
        student.encode([{"image": str(file)}])
    assert opened == []


@pytest.mark.parametrize(
    "inputs", [[{"text": "a", "image": drawing(0)}], [{"text": "a"}, drawing(0)], [{"audio": "a"}]]
)
def test_what_it_cannot_take_is_refused(student: SentenceTransformer, inputs: list[object]) -> None:
    with pytest.raises(ValueError):  # sentence-transformers' own, or an InputError
        student.encode(inputs)
    with pytest.raises(InputError, match="expected"):
        student[0].preprocess(inputs)


def test_images_are_fitted_into_a_white_square() -> None:
    black = Image.new("L", (40, 20), 0)
    fitted = vision.ink(black, 4)
    assert fitted.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert vision.ink(clear, 4).max() == 0.0
    assert vision.ink(Image.new("RGB", (4, 4), (0, 0, 0)), 4).min() == 1.0


def test_the_seed_decides_the_weights() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (vision.glyph_student(seed).encode([drawing(0)])[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_saved_and_loaded(student: SentenceTransformer, tmp_path: Path) -> None:
    student.prompts = {"query": "what: ", "document": ""}
    student.save_pretrained(str(tmp_path), create_model_card=False, safe_serialization=True)
    assert not [f for f in tmp_path.rglob("*") if f.suffix in {".bin", ".pt", ".pkl", ".py"}]
    assert vision.is_glyph_student(tmp_path)
    loaded = vision.load_glyph_student(tmp_path)
    assert loaded.prompts == student.prompts
    for inputs in (["a cat"], [drawing(0)]):
        assert np.array_equal(loaded.encode(inputs), student.encode(inputs))
    with pytest.raises(ValueError, match="trust_remote_code"):  # why there is a loader of our own
        SentenceTransformer(str(tmp_path), trust_remote_code=False)
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, local_files_only=True)
    assert np.array_equal(again.encode([drawing(0)]), student.encode([drawing(0)]))


def test_texts_are_cut_to_max_length() -> None:
    student = vision.glyph_student(0)
    packaged.limit_length(student, 2)
    short, long = student.encode(["red car", "red car in a street"], show_progress_bar=False)
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_only_our_own_is_loaded(student: SentenceTransformer, tmp_path: Path) -> None:
    student.save_pretrained(str(tmp_path), create_model_card=False)
    for file, old, new in (
        ("modules.json", "b3_core.vision.MediaRouter", "evil.MediaRouter"),
        ("router_config.json", "b3_core.vision.GlyphEncoder", "evil.GlyphEncoder"),
        ("router_config.json", '"image_0_GlyphEncoder"', '"../image_0_GlyphEncoder"'),
    ):
        saved = (tmp_path / file).read_text()
        (tmp_path / file).write_text(saved.replace(old, new))
        assert not vision.is_glyph_student(tmp_path)
        with pytest.raises(InputError, match="no image-text student"):
            vision.load_glyph_student(tmp_path)
        (tmp_path / file).write_text(saved)
    assert vision.is_glyph_student(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([]))
    assert not vision.is_glyph_student(tmp_path)
    assert not vision.is_glyph_student(tmp_path / "nowhere")


def test_it_trains_in_sentence_transformers_trainer(tmp_path: Path) -> None:
    model = vision.glyph_student(0)
    names = ["one", "two", "red", "cat", "sea", "hat", "sun", "box"]
    rows = Dataset.from_dict(
        {
            "query": [drawing(i) for i in range(8)],
            "positive": [{"text": name} for name in names],
        },
        features=Features({"query": ImageFeature(), "positive": {"text": Value("string")}}),
    )
    before = {name: part.clone() for name, part in model.state_dict().items()}
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        loss=GroupedInfoNCE(model, temperature=0.1, symmetric=True),
    )
    trainer.add_model_card_callback = lambda *_: None
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    for name, part in model.state_dict().items():
        assert not torch.equal(part.cpu(), before[name]), name


@pytest.mark.parametrize("image", ["query", "positive"])
def test_cached_gradients_are_the_plain_ones(image: str) -> None:
    model = vision.glyph_student(0)
    texts = [{"text": name} for name in ("one", "two", "red cat", "sea")]
    images = [drawing(i) for i in range(4)]
    order = [images, texts] if image == "query" else [texts, images]

    def gradient(chunk_rows: int | None) -> torch.Tensor:
        model.zero_grad()
        columns = [model.preprocess(column) for column in order]
        GroupedInfoNCE(model, temperature=0.1, chunk_rows=chunk_rows)(columns).backward()
        return torch.cat(
            [part.grad.flatten() for part in model[0].sub_modules["image"].parameters()]
        )

    plain = gradient(None)
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(3), plain, atol=1e-6, rtol=1e-4)
