"""mteb's own tasks from a local copy of their dataset, with one of our encoders.

mteb reads a dataset from a folder as from the hub: one with its README.md, which names the parquet
files of ``corpus``, ``queries`` and ``qrels``, or of ``video`` and ``caption``. So a task only has
to be told another path. What it hands over as a decoded image is kept as PNG for the time of one
call, for an encoder reads files; a video's bytes are kept as they are: a column of videos would be
decoded by torchcodec, so once it is loaded its type is changed to one that is not decoded.

Of mteb's figures ``hit_rate_at_k`` is R@k of papers; its ``recall_at_1`` is capped where a query
has several positives. Its video tasks are of subsets (879 of MSR-VTT's clips, the first caption
each), so they are not beside published rows.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError
from b3_core.evaluate.encoder import Encoder
from b3_core.media import Item, MediaRoot

_KINDS = ("text", "image", "video")


def local_task(name: str, folder: str) -> Any:
    """Return one of mteb's retrieval tasks, to be read from a local folder.

    Parameters
    ----------
    name
        As mteb names it: ``Flickr30kT2IRetrieval``, ``MSCOCOI2TRetrieval``, ``MSRVTTT2V``.
    folder
        A copy of the task's dataset.

    Raises
    ------
    InputError
        mteb is not installed, has no such task, the task needs sound, or the folder lacks a
        README.md.
    """
    mteb = _mteb()
    if not Path(folder, "README.md").is_file():
        raise InputError(f"no README.md in {folder}", expected="a whole copy of a hub dataset")
    try:
        task: Any = mteb.get_task(name)
    except KeyError as error:
        raise InputError(f"mteb has no task '{name}'") from error
    if other := sorted(set(task.metadata.modalities) - set(_KINDS)):
        raise InputError(f"mteb's task {name} needs {other[0]}", expected=", ".join(_KINDS))
    where = {"path": str(Path(folder).resolve()), "revision": "local"}
    task.metadata = task.metadata.model_copy(update={"dataset": where})
    if "video" in task.metadata.modalities:
        task.load_data = partial(_load_undecoded, task, task.load_data)
    return task


def _load_undecoded(task: Any, load: Callable[..., None], **settings: Any) -> None:
    """Load a task's data, and have its videos handed over as bytes."""
    from datasets import Video  # noqa: PLC0415 - a second to import

    load(**settings)
    for splits in task.dataset.values():
        for split in splits.values():
            for part in ("queries", "corpus"):
                if "video" in split[part].column_names:
                    split[part] = split[part].cast_column("video", Video(decode=False))


def run_task(task: Any, encoder: Encoder, *, prompts: Mapping[str, str] | None = None) -> Any:
    """Evaluate an encoder on one of mteb's tasks; nothing is written.

    Parameters
    ----------
    task
        From :func:`local_task`.
    prompts
        What goes before texts, by ``query`` and ``document``.

    Returns
    -------
    mteb.results.TaskResult
        ``to_disk`` writes mteb's own result file.

    Raises
    ------
    InputError
        mteb is not installed.
    """
    mteb = _mteb()
    about = {"name": "b3/local", "modalities": list(_KINDS)}
    model = _Model(encoder, prompts or {}, mteb.models.ModelMeta.create_empty(about))
    found = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    return found.task_results[0]


def _mteb() -> Any:
    try:
        import mteb  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "mteb is not installed", remedy="pip install 'b3-batches[eval]'"
        ) from error
    return mteb


class _Model:
    """What mteb asks of an encoder."""

    def __init__(self, encoder: Encoder, prompts: Mapping[str, str], meta: Any) -> None:
        self._encoder, self._prompts = encoder, prompts
        self.mteb_model_meta = meta

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> npt.NDArray[np.float32]:
        prompt = self._prompts.get(getattr(prompt_type, "value", ""), "")
        with tempfile.TemporaryDirectory() as folder:
            root = MediaRoot(folder)
            parts = []
            for batch in inputs:
                items = [_item(row, folder) for row in _rows(batch)]
                parts.append(self._encoder.encode_items(items, root, prompt=prompt))
        return np.concatenate(parts)

    def similarity(self, a: Any, b: Any) -> Any:
        return np.asarray(a) @ np.asarray(b).T  # of unit vectors

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        return (np.asarray(a) * np.asarray(b)).sum(axis=1)


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    held = {name: batch[name] for name in _KINDS if batch.get(name) is not None}
    count = len(next(iter(held.values())))
    return [{name: each[at] for name, each in held.items()} for at in range(count)]


def _item(row: Mapping[str, Any], folder: str) -> Item:
    image, video = row.get("image"), row.get("video")
    if video is not None:
        if video["bytes"] is None:
            raise InputError(
                f"the video {video['path']} is not in its parquet file",
                expected="a copy of the hub's files, which hold videos as bytes",
            )
        name = hashlib.blake2b(video["bytes"], digest_size=16).hexdigest()
        Path(folder, name).write_bytes(video["bytes"])
        return Item(row.get("text") or "", "video", name)
    if image is None:
        return Item(text=row.get("text") or "")
    pixels = image.convert("RGBA")
    name = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest() + ".png"
    pixels.save(Path(folder, name))
    return Item(row.get("text") or "", "image", name)
