"""Questions about tables: (part of a table and a question, the value), as in VQA.

scikit-learn carries the tables iris, wine, breast cancer and diabetes. A row here is a crop of one,
three rows by three columns, drawn as a picture and also written as text, a question about one of
its cells, and that cell. Answers are a number of two digits or the name of a class: thousands of
questions share a few hundred answers, which is why visual question answering drops so many more
first ranks than retrieval does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from b3_core.corpus.made import IMAGE, Made, MadeKind, as_images, mixed, png
from b3_core.progress import Progress

SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("question", pa.string()),
        ("query", pa.string()),  # the crop as text and the question: for students that read only
        ("text", pa.string()),
        ("package", pa.string()),
        ("where", pa.string()),
    ]
)

ROWS, COLUMNS = 3, 3
_QUESTIONS = 3  # about a crop
_LINE, _WIDTH, _HEIGHT = 11, 448, 48  # pixels


@dataclass(frozen=True)
class Crop:
    """A few rows and columns of a table; families are crops, so that none is in two parts."""

    table: str
    names: tuple[str, ...]
    """What its columns hold."""
    samples: tuple[str, ...]
    """What its rows are called."""
    cells: tuple[tuple[str, ...], ...]

    @property
    def lines(self) -> list[str]:
        """The crop as text, a line a row, each beginning with the row's name."""
        titles = " | ".join(("sample", *self.names))
        rows = zip(self.samples, self.cells, strict=True)
        return [titles, *(" | ".join((sample, *row)) for sample, row in rows)]

    def questions(self) -> Iterator[tuple[str, str]]:
        """Yield a question about each cell, and its answer."""
        for sample, row in zip(self.samples, self.cells, strict=True):
            for name, cell in zip(self.names, row, strict=True):
                yield f"what is the {name} of sample {sample}?", cell


def make_tables(progress: Progress) -> Made:
    """Draw the crops and ask about some of each one's cells."""
    found = []
    crops = [crop for name, load in _loaders().items() for crop in _crops(name, load())]
    for done, crop in enumerate(crops, start=1):
        where = f"{crop.table}:{'+'.join(crop.samples)}:{'+'.join(crop.names)}"
        image = None
        asked = sorted(crop.questions(), key=lambda pair: mixed(where + pair[0]))
        for question, answer in asked[:_QUESTIONS]:
            image = image or draw(crop.lines)
            query = "\n".join([*crop.lines, question])
            found.append((image, question, query, answer, where))
        if done % 64 == 0 or done == len(crops):
            progress(done, len(crops))
    found.sort(key=lambda row: mixed(row[4] + row[1]))
    images, questions, queries, answers, places = zip(*found, strict=True)
    paths = [f"{mixed(place):016x}.png" for place in places]
    columns: list[Any] = [as_images(images, paths), questions, queries, answers, places, places]
    return Made(pa.table(columns, schema=SCHEMA))


def draw(lines: Sequence[str]) -> bytes:
    """Write lines of text, black on white, as a PNG; what is too long is cut off."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - an extra

    image = Image.new("L", (_WIDTH, _HEIGHT), 255)
    # Pillow's own bitmap font: the same pixels whatever fonts a machine has.
    font, pen = ImageFont.load_default_imagefont(), ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((2, 2 + number * _LINE), line, fill=0, font=font)
    return png(image.tobytes(), _WIDTH, _HEIGHT)


def _loaders() -> dict[str, Any]:
    from sklearn import datasets  # type: ignore[import-untyped]  # noqa: PLC0415 - slow

    return {
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
        "diabetes": lambda: datasets.load_diabetes(scaled=False),
    }


def _crops(name: str, data: Any) -> list[Crop]:
    """Cut a table into crops that do not overlap; the class, where rows have one, is a column."""
    names = [column.removesuffix(" (cm)").replace("_", " ") for column in data.feature_names]
    cells = [[_short(value) for value in row] for row in data.data]
    if "target_names" in data:
        names.append("class")
        for row, target in zip(cells, data.target, strict=True):
            row.append(str(data.target_names[target]).replace("_", " "))
    return [
        Crop(
            name,
            tuple(names[column : column + COLUMNS]),
            tuple(str(sample) for sample in range(row, min(row + ROWS, len(cells)))),
            tuple(tuple(line[column : column + COLUMNS]) for line in cells[row : row + ROWS]),
        )
        for row in range(0, len(cells), ROWS)
        for column in range(0, len(names), COLUMNS)
    ]


def _short(value: float) -> str:
    """Write a number with two digits that count: 14.23 as 14, 0.0712 as 0.071."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if abs(rounded) >= 10 else f"{rounded:g}"


KIND = MadeKind(
    dataset="tables",
    columns={"query": "question", "query_image": "image", "positive": "text"},
    task="vqa",
    packages=("scikit-learn", "pillow"),
    make=make_tables,
)
