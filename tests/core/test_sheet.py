"""The contact sheet of a batch: a cell a row, its pictures and words in their places."""

import io

from PIL import Image

from b3_core.sheet import Cell, contact_sheet


def drawn(cells: list[Cell]) -> Image.Image:
    return Image.open(io.BytesIO(contact_sheet(cells, "a batch")))


def cell(colour: str, community: int, **positive) -> Cell:
    return Cell(
        {"image": Image.new("L", (48, 48), colour)}, positive or {"text": "a name"}, community
    )


def test_rows_have_places_and_communities_have_colours() -> None:
    sheet = drawn([cell("black", 0), cell("black", 0), cell("black", 1), cell("black", -1)] * 3)
    wide = (sheet.width - 6) // 8
    marks = [sheet.getpixel((6 + wide * place, 40)) for place in range(4)]
    assert marks[0] == marks[1] != marks[2]
    assert marks[3] == (255, 255, 255)
    pictures = [sheet.getpixel((6 + wide * place + 50, 60)) for place in range(4)]
    assert pictures == [(0, 0, 0)] * 4
    assert drawn([cell("black", 0)] * 9).height > drawn([cell("black", 0)] * 8).height


def test_both_sides_pictures_are_drawn_side_by_side() -> None:
    both = cell("black", 0, image=[Image.new("RGB", (30, 10), "red")] * 2, text="frames")
    sheet = drawn([both])
    assert sheet.getpixel((6 + 6 + 48, 60)) == (0, 0, 0)
    assert sheet.getpixel((6 + 6 + 96 + 48, 30 + 48)) == (255, 0, 0)


def test_words_change_what_is_drawn() -> None:
    sheets = [
        drawn([cell("white", 0, text=text)]).tobytes()
        for text in ("one", "two", "a very long name " * 20)
    ]
    assert len(set(sheets)) == 3
