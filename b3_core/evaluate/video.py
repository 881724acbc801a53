"""Videos and their captions: readers of the layouts in which the test sets are passed around.

    MSR-VTT 1k-A   MSRVTT_JSFUSION_test.csv, or msrvtt_ret_test1k.json
    MSVD           test_list.txt with raw-captions.json or AllVideoDescriptions.txt,
                   or msvd_ret_test.json
    DiDeMo         test_data.json with test_list.txt, if it is there; or didemo_ret_test.json
    VATEX          vatex_public_test_english_v1.1.json or vatex_validation_v1.0.json, with
                   test_list.txt, if it is there; or vatex_ret_test.json
    ActivityNet    val_1.json with val_ids.json, if it is there; or anet_ret_val_1.json

Of DiDeMo and ActivityNet the captions of a video are one paragraph, in the order of the file; of
MSVD and VATEX each caption is a query, and a video's are all its positives. The ``*_ret_*`` files
are lists of ``{video, caption}``, a caption being a text or a list.
"""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from b3_core.errors import InputError
from b3_core.evaluate.captions import CaptionSet, caption_set, stems
from b3_core.evaluate.local import objects, read_json, read_text, text_of

_Found = list[tuple[str, list[str]]]
_PARAGRAPHS = {"didemo", "activitynet"}


def read_video(name: str, folder: Path, names: Sequence[str], *, drop: bool) -> CaptionSet:
    """Read the test set of one of :data:`VIDEO`.

    Parameters
    ----------
    name
        ``msrvtt``, ``msvd``, ``didemo``, ``vatex`` or ``activitynet``.
    folder
        Where its annotations are.
    names
        Files below the media root.
    drop
        Leave out videos that are not there, instead of refusing.

    Raises
    ------
    InputError
        None of its annotation files is there, one is not as published, or a video is not there.
    """
    for file, read in VIDEO[name].items():
        if (folder / file).exists():
            found = read(folder / file)
            break
    else:
        raise InputError(
            f"no annotations of {name} in {folder}",
            expected=f"one of {', '.join(VIDEO[name])}",
            remedy=_remedy(name, folder),
        )
    if name in _PARAGRAPHS:
        found = _paragraphs(found)
    if name == "activitynet":  # "v_" belongs to the id, but some name the files without it
        known = stems(names)
        found = [
            (video if video in known else video.removeprefix("v_"), said) for video, said in found
        ]
    return caption_set("video", found, names, folder / file, drop=drop)


def _remedy(name: str, folder: Path) -> str:
    if name == "msvd" and (folder / "raw-captions.pkl").exists():
        return "a pickle can run code and is not read: convert raw-captions.pkl to .json once"
    return ""


def _pairs_csv(path: Path) -> _Found:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if not {"video_id", "sentence"} <= set(reader.fieldnames or ()):
        raise InputError(f"{path} lacks video_id or sentence", expected="a header with both")
    return [(text_of(row["video_id"]), [text_of(row["sentence"])]) for row in reader]


def _pairs_json(path: Path) -> _Found:
    return [
        (text_of(row["video"]), _captions(row["caption"]))
        for row in objects(read_json(path), path, "", ("video", "caption"))
    ]


def _msvd_json(path: Path) -> _Found:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no object", expected="captions by video")
    said = {
        video: [
            caption if isinstance(caption, str) else " ".join(map(text_of, caption))
            for caption in captions  # a caption may be a list of words
        ]
        for video, captions in content.items()
    }
    return _listed(said, path)


def _msvd_text(path: Path) -> _Found:
    said: dict[str, list[str]] = {}
    for line in read_text(path).splitlines():
        video, _, caption = line.partition(" ")
        if caption and not line.startswith("#"):
            said.setdefault(video, []).append(caption)
    return _listed(said, path)


def _listed(said: dict[str, list[str]], path: Path) -> _Found:
    """Take the videos of the list beside ``path``, in its order."""
    wanted = _list(path.with_name("test_list.txt"))
    lacking = [video for video in wanted if video not in said]
    if lacking:
        raise InputError(f"'{lacking[0]}' of test_list.txt has no caption in {path}")
    return [(video, said[video]) for video in wanted]


def _didemo(path: Path) -> _Found:
    found = [
        (text_of(row["video"]), [text_of(row["description"])])
        for row in objects(read_json(path), path, "", ("video", "description"))
    ]
    return _only(found, path.with_name("test_list.txt"))


def _vatex(path: Path) -> _Found:
    found = [
        (text_of(row["videoID"]), _captions(row["enCap"]))
        for row in objects(read_json(path), path, "", ("videoID", "enCap"))
    ]
    return _only(found, path.with_name("test_list.txt"))


def _activitynet(path: Path) -> _Found:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no object", expected="sentences by video")
    videos = [{"video": video, **_fields(entry)} for video, entry in content.items()]
    found = [
        (row["video"], _captions(row["sentences"]))
        for row in objects(videos, path, "", ("video", "sentences"))
    ]
    ids = path.with_name("val_ids.json")
    if not ids.exists():
        return found
    wanted = set(_captions(read_json(ids)))
    return [(video, said) for video, said in found if video in wanted]


def _fields(entry: object) -> dict[str, object]:
    return entry if isinstance(entry, dict) else {}


def _captions(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [text_of(each) for each in _sequence(value)]


def _sequence(value: object) -> list[object]:
    if not isinstance(value, list):
        raise InputError(f"{value!r} stands where captions were expected")
    return value


def _paragraphs(found: _Found) -> _Found:
    joined: dict[str, list[str]] = {}
    for video, captions in found:
        joined.setdefault(video, []).extend(caption.strip() for caption in captions)
    return [(video, [" ".join(captions)]) for video, captions in joined.items()]


def _list(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _only(found: _Found, path: Path) -> _Found:
    if not path.exists():
        return found
    wanted = set(_list(path))
    return [(video, captions) for video, captions in found if video in wanted]


#: For each set the annotation files that are known, the first that is there being read.
VIDEO: dict[str, dict[str, Callable[[Path], _Found]]] = {
    "msrvtt": {"MSRVTT_JSFUSION_test.csv": _pairs_csv, "msrvtt_ret_test1k.json": _pairs_json},
    "msvd": {
        "raw-captions.json": _msvd_json,
        "AllVideoDescriptions.txt": _msvd_text,
        "msvd_ret_test.json": _pairs_json,
    },
    "didemo": {"test_data.json": _didemo, "didemo_ret_test.json": _pairs_json},
    "vatex": {
        "vatex_public_test_english_v1.1.json": _vatex,
        "vatex_validation_v1.0.json": _vatex,
        "vatex_ret_test.json": _pairs_json,
    },
    "activitynet": {"val_1.json": _activitynet, "anet_ret_val_1.json": _pairs_json},
}
