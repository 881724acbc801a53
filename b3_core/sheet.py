"""A batch to look at: its rows as thumbnails with their texts, rows of a community side by side.

Legend: B rows of a batch.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from b3_core.inputs import ModelInput

if TYPE_CHECKING:
    from PIL import Image

_THUMB = 96  # pixels a side
_LINES = 3  # of text below a thumbnail
_LINE = 13  # pixels from one to the next
_GAP = 6
_COLUMNS = 8
_CHARACTERS = 17  # of a line


@dataclass(frozen=True)
class Cell:
    """One row of a batch."""

    query: ModelInput
    positive: ModelInput
    community: int
    """Rows of one have the same colour at their left; -1, drawn at random, has none."""


def contact_sheet(cells: Sequence[Cell], title: str) -> bytes:
    """Draw a batch as a PNG: each row its pictures (a video's first frame), then its texts.

    Parameters
    ----------
    cells
        Rows in the order they are drawn in, B.
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - an extra

    pictures = max((len(_pictures(cell)) for cell in cells), default=1)
    wide, high = _THUMB * max(pictures, 1) + 3 * _GAP, _THUMB + _LINES * _LINE + 2 * _GAP
    rows = -(-len(cells) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * wide + _GAP, rows * high + 3 * _GAP + _LINE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((_GAP, _GAP), title, fill="black", font=ImageFont.load_default(13))
    for place, cell in enumerate(cells):
        row, column = divmod(place, _COLUMNS)
        left, top = column * wide + _GAP, row * high + 3 * _GAP + _LINE
        if cell.community >= 0:
            mark = (left, top, left + 2, top + high - 2 * _GAP)
            pen.rectangle(mark, fill=_colour(cell.community))
        for number, picture in enumerate(_pictures(cell)):
            sheet.paste(_thumb(picture), (left + _GAP + number * _THUMB, top))
        for line, text in enumerate(_lines(cell, _CHARACTERS * max(pictures, 1))):
            at = (left + _GAP, top + _THUMB + line * _LINE)
            pen.text(at, text, fill="#333", font=font)
    body = io.BytesIO()
    sheet.save(body, "PNG", optimize=True)
    return body.getvalue()


def _pictures(cell: Cell) -> list[Any]:
    sides = [side for side in (cell.query, cell.positive) if not isinstance(side, str)]
    images = [side["image"] for side in sides if "image" in side]
    return [image[0] if isinstance(image, list) else image for image in images]


def _thumb(picture: "Image.Image") -> "Image.Image":
    from PIL import Image, ImageOps  # noqa: PLC0415 - an extra

    box = (_THUMB - 2, _THUMB - 2)
    fitted = ImageOps.contain(picture.convert("RGB"), box, Image.Resampling.LANCZOS)
    return ImageOps.pad(fitted, box, color="#f4f4f4")


def _lines(cell: Cell, characters: int) -> list[str]:
    texts = [side if isinstance(side, str) else side.get("text", "") for side in
             (cell.query, cell.positive)]  # fmt: skip
    words = " → ".join(filter(None, texts)).split()
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) >= characters and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()[:characters]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"{lines[_LINES - 1][: characters - 1]}…"]
    return lines


def _colour(community: int) -> str:
    return f"hsl({community * 47 % 360}, 70%, 45%)"
