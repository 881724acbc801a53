"""The corpora that are made of what a package carries: icons, digits and tables."""

import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution, version
from types import SimpleNamespace

import material_design_icons_pack as pack
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from b3_core.corpus import KINDS, Corpus, corpus_fingerprint, icons, made, read_corpus, tables
from b3_core.errors import InputError
from b3_core.progress import silent

PARTS = ("train", "validation", "test")
ALL = [icon for icon in vars(pack).values() if isinstance(icon, pack.Icon)]


def named(*names: str) -> list[object]:
    found = [icon for icon in ALL if icon.slug in names]
    assert len(found) == len(names)
    return found


def offer(monkeypatch: pytest.MonkeyPatch, chosen: list[object]) -> None:
    fake = SimpleNamespace(
        Icon=(pack.Icon, SimpleNamespace), **{f"I{i}": v for i, v in enumerate(chosen)}
    )
    monkeypatch.setitem(sys.modules, "material_design_icons_pack", fake)


@pytest.fixture(params=["icons", "digits", "tables"], scope="module")
def corpus(request: pytest.FixtureRequest) -> Iterator[tuple[str, Corpus]]:
    with pytest.MonkeyPatch.context() as patch:
        offer(patch, ALL[::12])
        if request.param == "tables":
            loaders = tables._loaders()
            patch.setattr(tables, "_loaders", lambda: {"wine": loaders["wine"]})
        yield request.param, read_corpus(KINDS[request.param], heldout=10_000, validation=10_000)


def rows(read: Corpus) -> dict[str, list[dict[str, object]]]:
    return {part: getattr(read, part).to_pylist() for part in PARTS}


def pixels(row: dict[str, dict[str, bytes]]) -> bytes:
    with Image.open(io.BytesIO(row["image"]["bytes"]), formats=["PNG"]) as image:
        assert image.mode == "L"
        assert min(image.size) == 48
        return image.tobytes()


def test_no_family_and_no_picture_in_two_parts(corpus: tuple[str, Corpus]) -> None:
    parts = rows(corpus[1])
    for of in (lambda row: row["package"], pixels):
        seen = {part: {of(row) for row in found} for part, found in parts.items()}
        assert all(seen.values())
        assert sum(map(len, seen.values())) == len(set().union(*seen.values()))
    places = Counter(row["where"] for found in parts.values() for row in found)
    assert len(places) > 100


def test_columns_and_shares(corpus: tuple[str, Corpus]) -> None:
    name, read = corpus
    kind = KINDS[name]
    assert kind.dataset == name
    total = sum(len(getattr(read, part)) for part in PARTS)
    for part in PARTS:
        table = getattr(read, part)
        assert {*kind.columns.values(), "package", "where"} <= set(table.column_names)
        assert table.schema.field("image").type == made.IMAGE
        assert all(column.null_count == 0 for column in table.columns)
        assert all(text.strip() == text != "" for text in table["text"].to_pylist())
        assert len(table) / total == pytest.approx(kind.shares[part], abs=0.07)


def test_the_same_bytes_twice(corpus: tuple[str, Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    name, read = corpus
    if name == "tables":
        loaders = tables._loaders()
        monkeypatch.setattr(tables, "_loaders", lambda: {"wine": loaders["wine"]})
    offer(monkeypatch, ALL[::12][::-1])  # the order in which they are listed does not matter
    again = read_corpus(KINDS[name], 50, heldout=10, validation=20)
    for part, count in (("train", 50), ("validation", 20), ("test", 10)):
        assert getattr(again, part).equals(getattr(read, part).slice(0, count))


def test_icons_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = named("heart", "cards-heart", "heart-outline", "account-alert", "square")
    alike = SimpleNamespace(
        slug="far", svg='<svg><image href="file:///a.png"/></svg>', deprecated=False
    )
    brand = next(icon for icon in ALL if icon.deprecated)
    offer(monkeypatch, [*chosen, alike, brand])
    table, skipped = icons.make_icons(silent)
    assert skipped == 1
    found = {row["text"]: row for row in table.to_pylist()}
    assert sorted(found) == ["account alert", "cards heart, heart", "heart outline", "square"]
    # One drawing joins two families, and each one's variants with them.
    assert found["cards heart, heart"]["package"] == found["heart outline"]["package"]
    assert found["cards heart, heart"]["where"] == "mdi:cards-heart mdi:heart"
    square = np.frombuffer(pixels(found["square"]), np.uint8).reshape(48, 48)
    assert square[0, 0] == 255  # white outside
    assert square[24, 24] == 0  # black inside
    assert square.tolist() == square.T.tolist()


def test_families_by_hand() -> None:
    assert icons.family_of("account-alert-variant-outline") == "account-alert"
    assert icons.family_of("outline") == "outline"
    groups = [["b", "c-outline"], ["c", "d"], ["a-variant", "d-outline"], ["e"]]
    expected = dict.fromkeys(["b", "c-outline", "c", "d", "a-variant", "d-outline"], "a")
    assert icons.families(groups) == {**expected, "e": "e"}


def test_the_licence_is_named() -> None:
    read = distribution("material-design-icons-pack")
    assert read.metadata["License"] == "Apache-2.0"
    licence = next(file for file in read.files or () if file.name == "LICENSE").read_text()
    for words in ("Pictogrammers Free License", "Apache"):
        assert words in licence
        assert words in (icons.__doc__ or "")


def test_digits_are_ten_labels() -> None:
    read = read_corpus(KINDS["digits"])
    found = [row for part in rows(read).values() for row in part]
    assert len(found) == 1797
    labels = Counter(row["text"] for row in found)
    assert len(labels) == 10
    assert min(labels.values()) > 170
    zero = next(row for row in found if row["where"] == "digits:0")  # the first of the file
    assert zero["text"] == "the digit zero"
    grey = np.frombuffer(pixels(zero), np.uint8).reshape(8, 6, 8, 6)
    expected = np.round(255 - load_digits().images[0] * 255 / 16)
    assert np.abs(grey[:, 0, :, 0] - expected).max() <= 1
    assert (grey == grey[:, :1, :, :1]).all()


def test_a_table_by_hand() -> None:
    data = SimpleNamespace(
        feature_names=["width (cm)", "area", "mean_size", "depth"],
        data=np.array([[14.23, 0.0712, 3, 1065], [1.5, 2.0, 0.0, 9.96]]),
        target_names=np.array(["left", "class_1"]),
        target=[0, 1],
        __contains__=None,
    )

    class Data(SimpleNamespace):
        def __contains__(self, name: str) -> bool:
            return hasattr(self, name)

    first, second = tables._crops("toy", Data(**vars(data)))
    assert first.lines == [
        "sample | width | area | mean size",
        "0 | 14 | 0.071 | 3",
        "1 | 1.5 | 2 | 0",
    ]
    assert second.lines == ["sample | depth | class", "0 | 1100 | left", "1 | 10 | class 1"]
    assert list(second.questions())[1] == ("what is the class of sample 0?", "left")


def test_answers_are_short_and_few(corpus: tuple[str, Corpus]) -> None:
    name, read = corpus
    if name != "tables":
        return
    found = [row for part in rows(read).values() for row in part]
    answers = Counter(row["text"] for row in found)
    assert len(found) > 4 * len(answers)
    assert max(len(answer.split()) for answer in answers) <= 2
    for row in found[:100]:
        *lines, question = row["query"].split("\n")
        assert question == row["question"]
        titles, *cells = ([part.strip() for part in line.split("|")] for line in lines)
        asked, sample = question.removeprefix("what is the ").removesuffix("?").split(" of sample ")
        line = next(line for line in cells if line[0] == sample)
        assert line[titles.index(asked)] == row["text"]


def test_the_fingerprint_is_of_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = {name: corpus_fingerprint(KINDS[name]) for name in ("icons", "digits", "tables")}
    assert len(set(prints.values())) == 3
    monkeypatch.setattr(
        made, "version", lambda name: version(name) + ("!" if name == "resvg-py" else "")
    )
    assert corpus_fingerprint(KINDS["icons"]) != prints["icons"]
    assert corpus_fingerprint(KINDS["digits"]) == prints["digits"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> str:
        if name == "resvg-py":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(made, "version", gone)
    monkeypatch.setattr(icons, "draw", None)  # nothing of it is called
    for ask in (corpus_fingerprint, read_corpus):
        with pytest.raises(
            InputError, match="resvg-py is not installed; run: pip install resvg-py"
        ):
            ask(KINDS["icons"])


def test_a_part_without_rows_is_refused() -> None:
    def one(_: object) -> made.Made:
        columns = [made.as_images([b""], [""]), ["a"], ["family"], ["w"]]
        return made.Made(pa.table(columns, schema=made.PICTURES))

    with pytest.raises(InputError, match="have no row for the .* part of icons"):
        made.make_corpus(replace(KINDS["icons"], make=one))


def test_parts_of_families_do_not_hang_on_what_else_there_is() -> None:
    names = [f"family {i}" for i in range(4000)]
    shares = KINDS["icons"].shares
    found = Counter(made.family_part(name, shares) for name in names)
    assert found["test"] / 4000 == pytest.approx(0.15, abs=0.02)
    # Rows are sorted by another number: the first of them are of all parts.
    first = sorted(names, key=made.mixed)[:400]
    assert Counter(made.family_part(n, shares) for n in first)["test"] == pytest.approx(60, abs=25)


@pytest.mark.slow
def test_all_icons() -> None:
    parts = rows(read_corpus(KINDS["icons"]))
    assert {part: len(found) for part, found in parts.items()} == {
        "train": 5054,
        "validation": 1046,
        "test": 1060,
    }
    assert len({pixels(row) for found in parts.values() for row in found}) == 7160
    assert sum(len(row["where"].split()) for found in parts.values() for row in found) == 7188
