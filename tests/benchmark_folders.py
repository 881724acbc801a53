"""Local copies of every benchmark, a few rows each, and a small encoder that is a real one.

Media are of one colour; the encoder knows colours by their names and by their pixels.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from b3_core.evaluate import mmeb
from b3_core.media import Item, MediaError, MediaRoot, decode_frames, decode_image
from b3_core.progress import Progress, silent

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}


class ColourEncoder:
    """Names and pixels of colours, hashed words for the rest."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Item]] = []

    def encode_items(
        self,
        items: Sequence[Item],
        root: MediaRoot | None,
        *,
        prompt: str = "",
        progress: Progress = silent,
    ) -> np.ndarray:
        self.asked += [(prompt, item) for item in items]
        vector_ND = np.stack([self._vector(item, root, prompt) for item in items])
        progress(len(items), len(items))
        return (vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)).astype(np.float32)

    def _vector(self, item: Item, root: MediaRoot | None, prompt: str) -> np.ndarray:
        vector_D = np.zeros(20)
        vector_D[3] = 0.1
        for word in (prompt + item.text).lower().replace(".", " ").split():
            if word in COLOURS:
                vector_D[:3] += np.array(COLOURS[word]) / 255
            else:
                vector_D[4 + zlib.crc32(word.encode()) % 16] += 0.01
        if item.kind:
            try:
                content = root.read(item.file)
            except MediaError as error:
                raise MediaError(f"'{item.file}' {error}") from error
            images = [decode_image(content)] if item.kind == "image" else decode_frames(content)
            vector_D[:3] += np.mean([np.asarray(image).mean((0, 1)) for image in images], 0) / 255
        return vector_D


def picture(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), COLOURS[colour]).save(path)


def clip(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), COLOURS[colour]))
        for at in range(4):
            frame.pts = at
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def mmeb_task(folder: Path, images: Path, task: mmeb.MmebTask, *, wrong: int) -> None:
    """Write four queries, of which the first ``wrong`` look like their second candidate."""
    names = list(COLOURS)
    rows = []
    for at in range(4):
        likes = names[at]
        # With four candidates or five: lists are of different lengths.
        others = [name for name in names if name != likes][: 3 + at % 2]
        positive, rest = (others[0], [likes, *others[1:]]) if at < wrong else (likes, others)
        rows.append(_mmeb_row(task, likes, [positive, *rest], images))
    (folder / task.name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / task.name / "test-00000-of-00001.parquet")
    pq.write_table(pa.table({"other": [1]}), folder / task.name / "train-00000.parquet")


def _mmeb_row(task: mmeb.MmebTask, likes: str, targets: list[str], images: Path) -> dict:
    sides = {
        "classification": ("image", "text"),
        "vqa": ("both", "text"),
        "grounding": ("both", "image"),
    }
    query, target = sides.get(task.meta) or {
        "i2t": ("image", "text"),
        "t2i": ("text", "image"),
    }.get(task.name[-3:], ("both", "both"))
    file = f"{task.name}/{{}}.png"
    for colour in {likes, *targets}:
        picture(images / file.format(colour), colour)
    shown = query != "text"
    return {
        "qry_text": ("<|image_1|>\n" if shown else "") + f"Find what is {likes}.",
        "qry_img_path": file.format(likes) if shown else "",
        "tgt_text": [
            {"text": name, "image": "<|image_1|> Represent it.", "both": f"<|image_1|> {name}"}[
                target
            ]
            for name in targets
        ],
        "tgt_img_path": ["" if target == "text" else file.format(name) for name in targets],
    }


#: Of each medium its colour and its captions' colours: see the metrics in the tests.
TOLD = [
    ("red", ["red", "red", "yellow red", "red", "red"]),
    ("green", ["green"] * 5),
    ("blue", ["yellow yellow blue", "blue", "blue", "blue", "blue"]),
    ("yellow", ["cyan"] * 5),
    ("cyan", ["cyan"] * 5),
]
SINGLE = [(colour, said[:1]) for colour, said in TOLD]


def karpathy(folder: Path, name: str) -> None:
    entries = []
    for at, (colour, said) in enumerate(TOLD):
        file = f"{at:04}.jpg"
        entry = {
            "filename": file,
            "split": "test",
            "sentences": [{"raw": f"It is {word}."} for word in said],
        }
        if name == "coco":
            entry["filepath"] = "val2014"
            picture(folder / "val2014" / file, colour)
        else:
            picture(folder / "flickr30k-images" / file, colour)
        entries.append(entry)
    entries.insert(2, {"filename": "no.jpg", "split": "train", "sentences": [{"raw": "no"}]})
    _json(folder / f"dataset_{name}.json", {"dataset": name, "images": entries})


def urban1k(folder: Path) -> None:
    (folder / "caption").mkdir(parents=True)
    for at, (colour, said) in enumerate(SINGLE):
        picture(folder / "image" / f"{at + 1}.jpg", colour)
        text = f"It is {said[0]}.\nred green blue\n"
        (folder / "caption" / f"{at + 1}.txt").write_text(text)


def plain(folder: Path, kind: str) -> None:
    ending, make = {"image": (".png", picture), "video": (".mp4", clip)}[kind]
    rows = []
    for at, (colour, said) in enumerate(TOLD):
        make(folder / f"{at}{ending}", colour)
        rows.append({"id": at, "file": f"{at}{ending}", "captions": said})
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")


def _clips(folder: Path, names: Sequence[str]) -> None:
    for name, (colour, _) in zip(names, TOLD, strict=True):
        clip(folder / name, colour)


def msrvtt_csv(folder: Path) -> None:
    _clips(folder / "videos", [f"video{at}.mp4" for at in range(5)])
    lines = ["key,vid_key,video_id,sentence"]
    lines += [
        f'ret{at},msr{at},video{at},"it is, so, {said[0]}"' for at, (_, said) in enumerate(SINGLE)
    ]
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(lines) + "\n")


def msrvtt_json(folder: Path) -> None:
    _clips(folder, [f"video{at}.mp4" for at in range(5)])
    rows = [{"video": f"video{at}.mp4", "caption": said[0]} for at, (_, said) in enumerate(SINGLE)]
    _json(folder / "msrvtt_ret_test1k.json", rows)


def msvd_json(folder: Path) -> None:
    _clips(folder, [f"-4w_{at}_{at + 1}.mp4" for at in range(5)])
    (folder / "test_list.txt").write_text("".join(f"-4w_{at}_{at + 1}\n" for at in range(5)))
    said = {
        f"-4w_{at}_{at + 1}": [["it", "is", word] for word in words]
        for at, (_, words) in enumerate(TOLD)
    }
    _json(folder / "raw-captions.json", {"train_1_2": [["no"]], **said})


def msvd_text(folder: Path) -> None:
    msvd_json(folder)
    (folder / "raw-captions.json").unlink()
    lines = ["# a comment", "", "train_1_2 no"]
    lines += [
        f"-4w_{at}_{at + 1} it is {word}" for at, (_, words) in enumerate(TOLD) for word in words
    ]
    (folder / "AllVideoDescriptions.txt").write_text("\n".join(lines) + "\n")


def didemo(folder: Path) -> None:
    """Write two moments a video, whose sentences make one paragraph."""
    names = [f"1{at}@N00_{at}.mov" for at in range(5)]
    _clips(folder / "videos", [f"{name}.mp4" for name in names])
    rows = [
        {"video": name, "description": text, "times": [[0, 0]]}
        for text_of in (lambda said: "at first", lambda said: f"then {said}")
        for name, (_, (said,)) in zip(names, SINGLE, strict=True)
        for text in [text_of(said)]
    ]
    rows.append({"video": "other.avi", "description": "no", "times": []})
    _json(folder / "test_data.json", rows)
    (folder / "test_list.txt").write_text("\n".join(names) + "\n")


def vatex(folder: Path) -> None:
    names = [f"id{at}_000010_000020" for at in range(5)]
    _clips(folder, [f"{name}.mp4" for name in names])
    rows = [
        {"videoID": name, "enCap": said, "chCap": []}
        for name, (_, said) in zip(names, TOLD, strict=True)
    ]
    _json(folder / "vatex_public_test_english_v1.1.json", rows)


def activitynet(folder: Path) -> None:
    _clips(folder, ["v_a0.mp4", "v_a1.mp4", "a2.mp4", "a3.mp4", "a4.mp4"])
    content = {
        f"v_a{at}": {"duration": 1.0, "timestamps": [[0, 1]], "sentences": [" it is", f"{said} "]}
        for at, (_, (said,)) in enumerate(SINGLE)
    }
    _json(folder / "val_1.json", {**content, "v_other": {"sentences": ["no"]}})
    _json(folder / "val_ids.json", list(content))


def _json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
