"""The teacher: texts in, unit vectors out, the same bits however the work is spread.

Floating-point sums depend on what shares a batch, so rows are always encoded in the same blocks
of ``BLOCK`` rows counted from row 0, on one thread: a shard is whole blocks, and neither the size
of shards nor the number of workers can change a bit of the result.

Legend: N rows, D width.
"""

import contextlib
import gc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from b3_core import multimodal, packaged
from b3_core.artifacts import sha256_once
from b3_core.config import TeacherSpec, TrainSpec
from b3_core.config.models import PACKAGED
from b3_core.errors import InputError
from b3_core.inputs import ModelInput, Seeing, prompted
from b3_core.progress import Progress, silent
from b3_core.store import Artifact, Draft

VERSION = 3
BLOCK = 256
#: Texts of one forward pass: part of what decides the bits.
MINIBATCH = 64
_NORM_TOLERANCE = 5e-3  # float16 keeps a unit vector's norm to about 1e-3


def check_norms(
    query_ND: npt.NDArray[np.float32],
    positive_ND: npt.NDArray[np.float32],
    row_id_N: npt.NDArray[np.int64] | None = None,
) -> None:
    """Refuse vectors that are no unit vectors, NaN among them.

    Parameters
    ----------
    row_id_N
        What the rows are called in an error; by their places, if absent.

    Raises
    ------
    InputError
        The first row that has one is named.
    """
    for side, vectors in (("query", query_ND), ("positive", positive_ND)):
        norm_N = np.linalg.norm(vectors, axis=1)
        bad = np.flatnonzero(~(np.abs(norm_N - 1) < _NORM_TOLERANCE))  # NaN is bad too
        if bad.size:
            row = bad[0] if row_id_N is None else row_id_N[bad[0]]
            raise InputError(
                f"the teacher's embedding of the {side} in row {row} has norm "
                f"{norm_N[bad[0]]:.4g} ({bad.size} such rows)",
                expected="finite vectors of norm 1",
                remedy="try teacher.precision: fp32, or look at that row's text",
            )


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of a dataset's queries and positives, in row order.

    Raises
    ------
    InputError
        A vector is not finite or has no unit norm; the row is named.
    """

    query_ND: npt.NDArray[np.float32]
    positive_ND: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.query_ND.shape != self.positive_ND.shape or self.query_ND.ndim != 2:
            raise ValueError(f"shapes {self.query_ND.shape} and {self.positive_ND.shape} differ")
        check_norms(self.query_ND, self.positive_ND)

    def save(self, draft: Draft) -> None:
        """Write both sides as float16: half the space, and ranks do not notice."""
        np.save(draft.path("query.npy"), self.query_ND.astype(np.float16))
        np.save(draft.path("positive.npy"), self.positive_ND.astype(np.float16))

    @classmethod
    def join(cls, parts: Iterable[Artifact], draft: Draft, *, rows: int) -> int:
        """Write what follows one another in several artifacts as one, a part at a time.

        Returns
        -------
        int
            D.
        """
        whole: dict[str, npt.NDArray[np.float16]] = {}
        start = 0
        for artifact in parts:
            part = cls.load(artifact)
            stop = start + len(part.query_ND)
            for name, vector_ND in (("query", part.query_ND), ("positive", part.positive_ND)):
                if name not in whole:
                    shape = rows, vector_ND.shape[1]
                    whole[name] = np.lib.format.open_memmap(
                        draft.path(f"{name}.npy"), "w+", np.float16, shape
                    )
                whole[name][start:stop] = vector_ND
            start = stop
        if start != rows:
            raise ValueError(f"{start} vectors of {rows} rows")
        return int(whole["query"].shape[1])

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read both sides back as float32."""
        query, positive = (
            np.load(artifact.path(name), allow_pickle=False).astype(np.float32)
            for name in ("query.npy", "positive.npy")
        )
        return cls(query, positive)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join shards in row order."""
        return cls(
            np.concatenate([part.query_ND for part in parts]),
            np.concatenate([part.positive_ND for part in parts]),
        )

    def carried(self, before_N: npt.NDArray[np.int64], parts: Sequence[Self]) -> Self:
        """Return what rows were and became: theirs from here, the fresh ones' from shards.

        Parameters
        ----------
        before_N
            Each row's place among these; -1 where it is fresh.
        parts
            Vectors of the fresh rows, in their order.
        """
        fresh_N = before_N < 0
        sides = []
        for side in ("query_ND", "positive_ND"):
            vector_ND = getattr(self, side)[before_N]
            if parts:
                vector_ND[fresh_N] = np.concatenate([getattr(part, side) for part in parts])
            sides.append(vector_ND)
        return type(self)(*sides)


def shard_bounds(rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """Cut ``rows`` into shards of whole blocks, at least ``shard_rows`` rows each but the last."""
    step = -(-shard_rows // BLOCK) * BLOCK
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def model_identity(name: str, revision: str | None) -> dict[str, str]:
    """Say which weights ``name`` means: a hash of the files, or a pinned commit of a hub model.

    A plan asks once for every dataset and for every student: gigabytes are read the first time.

    Raises
    ------
    InputError
        A hub id without the commit that pins it, or a name that is neither.
    """
    if name == "static":
        files = list(packaged.static_files())
    elif name == "minilm":
        files = _model_files(packaged.minilm_folder())
    elif Path(name).is_dir():
        files = _model_files(Path(name))
    else:
        return {"hub": name, "revision": _pinned(name, revision)}
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {sha256_once(file)}\n".encode())
    if name not in PACKAGED and _saved(name).get("default_prompt_name") is not None:
        digest.update(b"default prompt unused")  # as it was not once: such vectors stay apart
    return {"weights": digest.hexdigest()[:20]}


def check_at_hand(name: str, revision: str | None) -> None:
    """Refuse a model of the hub that is not on this machine, where the hub may not be asked.

    Raises
    ------
    InputError
        It is in no cache, and ``HF_HUB_OFFLINE`` is set; or it is no model, or not pinned.
    """
    if name in PACKAGED or Path(name).is_dir():
        return
    from huggingface_hub import is_offline_mode, snapshot_download  # noqa: PLC0415 - hub's only
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415 - likewise

    revision = _pinned(name, revision)
    if not is_offline_mode():
        return
    try:
        # Where sentence-transformers looks.
        cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
        snapshot_download(name, revision=revision, cache_dir=cache, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model {name!r} is neither a folder nor, at revision {revision}, in the local cache "
            "of the hub, which is not asked while HF_HUB_OFFLINE=1",
            remedy="set HF_HUB_OFFLINE=0 in the environment to download it, or name a folder",
        ) from error


def weights_of(name: str, revision: str | None) -> str:
    """Write :func:`model_identity` in one line, as stages name it among their inputs."""
    identity = model_identity(name, revision)
    return ":".join(f"{key}={value}" for key, value in sorted(identity.items()))


def own_prompts(prompts: Mapping[str, str]) -> dict[str, str]:
    """Return the prompts of ``query`` and ``positive`` as a model names them, or none.

    Documents' are called ``document``, ``passage`` or ``corpus``, the names that
    sentence-transformers' ``encode_document`` knows; the first that is not blank is taken.
    """
    of_documents = (prompts.get(name) for name in ("document", "passage", "corpus"))
    return {
        "query": prompts.get("query") or "",
        "positive": next(filter(None, of_documents), ""),
    }


def with_own_prompts(spec: TeacherSpec) -> TeacherSpec:
    """Fill in the prompts that CONFIG leaves to the model, by the files of its folder.

    Those of a hub's model stay open until it is there (``Teacher.prompts``).
    """
    own: dict[str, str] = {}
    if spec.model not in PACKAGED:
        if not Path(spec.model).is_dir():
            return spec
        own = _saved(spec.model).get("prompts") or {}
    filled = {f"{side}_prompt": prompt for side, prompt in own_prompts(own).items()}
    return spec.model_copy(update={k: v for k, v in filled.items() if getattr(spec, k) is None})


def _saved(folder: str) -> dict[str, Any]:
    """Read what sentence-transformers saved of a model beside its modules, if it did."""
    file = Path(folder, "config_sentence_transformers.json")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def load_model(
    name: str,
    *,
    revision: str | None = None,
    pooling: str | None = None,
    device: str | None = None,
) -> Any:
    """Load a sentence-transformers model; never runs code that came with the weights.

    Parameters
    ----------
    name
        ``static``, ``minilm``, a folder, or a hub id with ``revision``.
    pooling
        How a transformer's token vectors become one: what the model says, by default.
    device
        Torch device; the first GPU if there is one, by default.

    Raises
    ------
    InputError
        There is no such model here, or it has no token vectors to pool.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - seconds to import
    from transformers.utils import logging  # noqa: PLC0415 - likewise

    from b3_core import static, vision  # noqa: PLC0415 - likewise

    folder = str(packaged.minilm_folder()) if name == "minilm" else name
    local = Path(folder).is_dir()
    is_glyph = local and vision.is_glyph_student(Path(folder))
    if name == "static" or is_glyph:
        refuse_pooling(name, pooling)
    multimodal.read_frames_as_images()
    logging.disable_progress_bar()  # loading takes less than a second, and b3 draws its own
    if name == "static":
        return packaged.static_teacher().to(device or "cpu")
    if is_glyph:
        return vision.load_glyph_student(Path(folder)).to(device or "cpu")
    check_at_hand(folder, revision)  # transformers would say that it cannot connect
    model = SentenceTransformer(
        folder,
        device=device,
        trust_remote_code=False,
        local_files_only=local,
        revision=None if local else _pinned(name, revision),
    )
    if static.is_static(model):  # its lookups are over before a GPU has been asked
        model.to(device or "cpu")
    multimodal.see_as_trained(model)
    return model if pooling is None else _pooled(model, pooling, name)


def refuse_pooling(name: str, pooling: str | None) -> None:
    """Refuse a pooling for a model that has no use for one.

    Raises
    ------
    InputError
        There is one.
    """
    if pooling is not None:
        raise InputError(
            f"model {name} pools no token vectors, but pooling is {pooling!r}",
            expected="a transformer",
            remedy="leave pooling out",
        )


def _pooled(model: Any, pooling: str, name: str) -> Any:
    """Return the model with its pooling, and nothing else, replaced."""
    from sentence_transformers.sentence_transformer.modules import Pooling  # noqa: PLC0415

    places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
    if len(places) != 1:
        refuse_pooling(name, pooling)
    model[places[0]] = Pooling(model[places[0]].embedding_dimension, pooling)
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Give torch's threads back when the block ends: a teacher takes all but one away."""
    import torch  # noqa: PLC0415 - seconds to import

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def free_memory() -> None:
    """Give back what models took that nobody refers to any more.

    sentence-transformers' models refer to themselves: they wait for the garbage collector.
    """
    import torch  # noqa: PLC0415 - seconds to import

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the other processes on it


class Teacher:
    """A loaded teacher that encodes blocks.

    Parameters
    ----------
    spec
        Which model, with which prompts and precision.
    threads
        CPU threads; the default keeps results independent of the machine's core count.
    """

    def __init__(self, spec: TeacherSpec, *, threads: int = 1, device: str | None = None) -> None:
        import torch  # noqa: PLC0415 - seconds to import, and only workers need it

        from b3_core import static  # noqa: PLC0415 - likewise

        torch.set_num_threads(threads)
        self.spec = spec
        self.model = load_model(
            spec.model, revision=spec.revision, pooling=spec.pooling, device=device
        )
        if spec.max_length is not None:
            packaged.limit_length(self.model, spec.max_length)
        self._prompts = dict(self.model.prompts)
        self.model.default_prompt_name = None  # would come before queries and positives alike
        self._static = static.is_static(self.model)
        self._takes_media = multimodal.takes_media(self.model)
        if not self._static:  # whichever type the weights are stored in
            self.model.to(torch.bfloat16 if spec.precision == "bf16" else torch.float32)

    def prompts(self, spec: TeacherSpec) -> dict[str, str]:
        """Return the prompts of ``query`` and ``positive``: as asked, else the model's own."""
        own, asked = own_prompts(self._prompts), (spec.query_prompt, spec.positive_prompt)
        return {
            side: own[side] if prompt is None else prompt
            for side, prompt in zip(("query", "positive"), asked, strict=True)
        }

    def encode(
        self, inputs: Sequence[ModelInput], *, prompt: str = "", progress: Progress = silent
    ) -> npt.NDArray[np.float32]:
        """Encode inputs that begin at a block's first row.

        Returns
        -------
        ndarray of shape (len(inputs), D), float32
            Unit vectors.

        Raises
        ------
        InputError
            An input has a medium, and the model takes none.
        """
        if self._static:
            from b3_core import static  # noqa: PLC0415 - imports torch

            texts = [_text_alone(item, self.spec.model) for item in inputs]
            column = pa.chunked_array([pa.array(texts, pa.large_string())])
            table = static.TokenTable.of(self.model[0].tokenizer, [column], prompt)
            return multimodal.unit(static.means(self.model, table))
        blocks = []
        for start in range(0, len(inputs), BLOCK):
            stop = min(start + BLOCK, len(inputs))
            # Pictures of a forward pass are decoded for it, and gone after it; texts of a block are
            # sorted by their length.
            step = MINIBATCH if self._takes_media else BLOCK
            blocks += [
                self._encode(inputs[at : min(at + step, stop)], prompt)
                for at in range(start, stop, step)
            ]
            progress(stop, len(inputs))
        return np.concatenate(blocks) if blocks else np.zeros((0, 0), dtype=np.float32)

    def _encode(self, inputs: Sequence[ModelInput], prompt: str) -> npt.NDArray[np.float32]:
        if not self._takes_media:
            texts = [prompt + _text_alone(item, self.spec.model) for item in inputs]
            return multimodal.unit(self._pass(texts))
        items = [prompted(item, prompt) for item in inputs]
        return multimodal.unit(multimodal.encode(self.model, items, self._pass))

    def _pass(self, items: Sequence[ModelInput]) -> npt.NDArray[np.float32]:
        vectors = self.model.encode(
            items,
            batch_size=MINIBATCH,
            normalize_embeddings=False,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def seeing(spec: TeacherSpec | TrainSpec) -> Seeing:
    """Return how much of a medium a teacher or student is shown."""
    return Seeing(spec.image_side, spec.frames)


def _text_alone(item: ModelInput, model: str) -> str:
    if isinstance(item, str):
        return item
    if "image" in item:
        raise InputError(
            f"model {model} reads texts only, but a row has an image or video",
            expected="a model of images and texts",
            remedy="name another; or, for a teacher of rows whose positives are texts, set "
            "teacher.reads: positive",
        )
    return str(item["text"])


_MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model", ".bin", ".jinja", ".tiktoken"}


def _model_files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("*") if file.is_file() and file.suffix in _MODEL_SUFFIXES
    )


def _pinned(name: str, revision: str | None) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"no model {name!r}",
            expected="'static', 'minilm', a folder, or a hub id such as org/model",
            remedy="check the path",
        )
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(
            f"hub model {name!r} has revision {revision!r}",
            expected="the 40 hex digits of a commit",
            remedy="set revision, so that the weights cannot change under you",
        )
    return revision
