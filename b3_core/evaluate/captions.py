"""Images or videos and their captions, found by one another: readers of local copies, and scores.

    Flickr30k, COCO        Karpathy's dataset_*.json              (split test, or 1k of COCO's)
    Urban1k                caption/*.txt beside image/*.jpg
    anything else          parquet: id, file, captions

What a reader makes is a :class:`CaptionSet`; its R@k are hit rates: a query is a hit if any of its
positives is among the best k. So are those of papers, whereas a recall would be capped at 1/5 where
an image has five captions.

Legend: C captions, F media, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError
from b3_core.evaluate.local import objects, parquet_rows, read_json, read_text, text_of
from b3_core.media import Item

_MOST_CAPTIONS = 5_000_000
KARPATHY = {"flickr30k": "dataset_flickr30k.json", "coco": "dataset_coco.json"}
COCO_1K = 1000  # images of each of the five folds of COCO's test split; the first is "coco-1k"


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Media with their captions.

    Raises
    ------
    ValueError
        A caption is of no medium, a medium has none, or a file is named twice.
    """

    kind: str
    """``image`` or ``video``."""
    files: tuple[str, ...]
    """F media below the media root, each once."""
    captions: tuple[str, ...]
    owner_C: npt.NDArray[np.int32]
    """The medium of each caption."""
    left_out: int = 0
    """Media of the benchmark that are not there."""

    def __post_init__(self) -> None:
        if len(self.owner_C) != len(self.captions) or len(set(self.files)) != len(self.files):
            raise ValueError("captions and owners differ in number, or a file is there twice")
        if not np.array_equal(np.unique(self.owner_C), np.arange(len(self.files))):
            raise ValueError("the owners of captions are not all media")

    @property
    def texts(self) -> list[Item]:
        """Captions as an encoder takes them."""
        return [Item(text=caption) for caption in self.captions]

    @property
    def media(self) -> list[Item]:
        """Media as an encoder takes them."""
        return [Item(kind=self.kind, file=file) for file in self.files]


def rank_metrics(rank_Q: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return ``hit@1``, ``hit@5``, ``hit@10`` (R@k of papers), ``median_rank`` and ``mrr``."""
    return {
        **{f"hit@{k}": float((rank_Q <= k).mean()) for k in (1, 5, 10)},
        "median_rank": float(np.median(rank_Q)),
        "mrr": float((1 / rank_Q).mean()),
    }


def read_karpathy(name: str, folder: Path, names: Sequence[str], *, drop: bool) -> CaptionSet:
    """Read the test split of Karpathy's Flickr30k or COCO.

    Parameters
    ----------
    name
        ``flickr30k``, ``coco`` (5,000 images), or ``coco-1k``: the first 1,000 of them.
    folder
        Where ``dataset_flickr30k.json`` or ``dataset_coco.json`` is.
    names
        Files below the media root.
    drop
        Leave out what is not there, instead of refusing.

    Raises
    ------
    InputError
        The file is not there or not as published, or an image is not there.
    """
    path = folder / KARPATHY[name.removesuffix("-1k")]
    found = [
        (
            "/".join(
                filter(None, (text_of(image.get("filepath", "")), text_of(image["filename"])))
            ),
            [text_of(sentence["raw"]) for sentence in image["sentences"]],
        )
        for image in objects(read_json(path), path, "images", ("filename", "sentences", "split"))
        if image["split"] == "test"
    ]
    if name.endswith("-1k"):
        found = found[:COCO_1K]
    return caption_set("image", found, names, path, drop=drop)


def read_urban1k(folder: Path, names: Sequence[str], *, drop: bool) -> CaptionSet:
    """Read Urban1k: ``caption/1.txt`` tells, in its first line, of ``image/1.jpg``.

    Raises
    ------
    InputError
        There are no captions, or an image is not there.
    """
    paths = sorted((folder / "caption").glob("*.txt"), key=lambda path: (len(path.stem), path.stem))
    found = [(f"image/{path.stem}.jpg", read_text(path).split("\n")[:1]) for path in paths]
    return caption_set("image", found, names, folder / "caption", drop=drop)


def read_plain(kind: str, folder: Path, names: Sequence[str], *, drop: bool) -> CaptionSet:
    """Read our own layout: parquet files with columns ``file`` and ``captions`` (list of text).

    Raises
    ------
    InputError
        There is no parquet file, a column is missing or of another type, or there are too many
        captions.
    """
    paths = sorted(folder.glob("*.parquet"))
    found: list[tuple[str, list[str]]] = []
    count = 0
    for path in paths:
        for row in parquet_rows(path, ("file", "captions")):
            captions = [text_of(caption) for caption in row["captions"] or []]
            found.append((text_of(row["file"]), captions))
            count += len(captions)
            if count > _MOST_CAPTIONS:
                raise InputError(f"more than {_MOST_CAPTIONS} captions in {folder}")
    return caption_set(kind, found, names, folder, drop=drop)


def caption_set(
    kind: str,
    found: Iterable[tuple[str, list[str]]],
    names: Sequence[str],
    source: Path,
    *,
    drop: bool,
) -> CaptionSet:
    """Put captions and the media that are there together.

    A medium is looked for under its whole name, then by its file's name alone, then by that
    without its ending: copies keep them in different folders, and videos in different formats.

    Parameters
    ----------
    found
        Name and captions of each medium; a name again adds captions to it.
    source
        What was read, for errors.

    Raises
    ------
    InputError
        There is nothing, a medium has no caption, or, unless ``drop``, one is not there.
    """
    by_name: dict[str, list[str]] = {}
    for name, captions in found:
        by_name.setdefault(name, []).extend(caption for caption in captions if caption.strip())
    lookup = _lookup(names)
    there = {name: _found(name, lookup) for name in by_name}
    gone = [name for name, file in there.items() if not file]
    if gone and not drop:
        raise InputError(
            f"{len(gone)} of {len(by_name)} media of {source} are not there, the first '{gone[0]}'",
            remedy="set the media root to where they are, or allow that missing ones are left out",
        )
    kept = {there[name]: captions for name, captions in by_name.items() if there[name]}
    mute = [file for file, captions in kept.items() if not captions]
    if mute or not kept:
        raise InputError(
            f"'{mute[0]}' has no caption in {source}" if mute else f"nothing to read in {source}",
            expected="media with a caption each",
        )
    if len(kept) + len(gone) != len(by_name):
        raise InputError(f"two media of {source} are one file", expected="a file each")
    owner_C = np.repeat(np.arange(len(kept), dtype=np.int32), [len(each) for each in kept.values()])
    all_captions = tuple(caption for each in kept.values() for caption in each)
    return CaptionSet(kind, tuple(kept), all_captions, owner_C, len(gone))


def stems(names: Sequence[str]) -> set[str]:
    """Return the files' names without folder and ending."""
    return {_stem(name)[1:] for name in names}


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    """Name a file without folder and ending, marked so that it is no whole name."""
    base = _base(name)
    return "*" + (base.rsplit(".", 1)[0] if "." in base else base)


def _lookup(names: Sequence[str]) -> dict[str, str]:
    """Map whole names, file names and stems to files; "" where two files share one."""
    lookup: dict[str, str] = {}
    for short in (_stem, _base):
        for name in names:
            lookup[short(name)] = "" if short(name) in lookup else name
    lookup.update((name, name) for name in names)
    return lookup


def _found(name: str, lookup: dict[str, str]) -> str:
    """Return the file that ``name`` means, "" if there is none."""
    tries = (name, _base(name), "*" + _base(name), _stem(name))  # "a.mov" may be "a.mov.mp4" now
    return next((lookup[each] for each in tries if lookup.get(each)), "")
