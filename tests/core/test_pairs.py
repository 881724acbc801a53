"""Rows, keys, groups and the held-out part."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.config import DatasetSpec, EvalSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import InputError
from b3_core.groups import group_ids
from b3_core.pairs import SCHEMA, PairTable, Split, edited_rows, rows_before
from b3_core.reading import read_split
from b3_core.store import ArtifactStore
from tests.conftest import examples

Rows = list[tuple[str, str, object]]


@dataclass
class Folder:
    """What a draft and an artifact have in common."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name


def write(path: Path, rows: Rows, *, row_group_size: int = 1000) -> str:
    query, positive, mark = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"q": query, "a": positive, "g": mark})
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def spec(uri: str, **more: str | None) -> DatasetSpec:
    return DatasetSpec(**{"name": "toy", "uri": uri, "query": "q", "positive": "a", **more})


def numbered(count: int, *, per_group: int = 1) -> Rows:
    return [(f"query {i}", f"answer {i // per_group}", i) for i in range(count)]


def texts(table: PairTable) -> list[tuple[str, str]]:
    return list(zip(table.queries.to_pylist(), table.positives.to_pylist(), strict=True))


def key(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def pair_table(positives: list[str], groups: list[int]) -> PairTable:
    n = len(groups)
    columns = [range(n), ["k"] * n, ["q"] * n, positives, groups]
    arrays = [pa.array(c, kind) for c, kind in zip(columns, SCHEMA.types, strict=True)]
    return PairTable("toy", pa.table(arrays, schema=SCHEMA))


def test_eval_uri_by_hand(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", [("x", "B", 0), ("y", "A", 0), ("x", "B", 0)])
    other = write(tmp_path / "other.parquet", [("z", "C", 0), ("v", "A", 0)])
    split = read_split(spec(train, eval_uri=other), EvalSpec())
    assert split.train.table.to_pydict() == {
        "row_id": [0, 1, 2],
        "key": [key("x", "B", ""), key("y", "A", ""), key("x", "B", "")],
        "query": ["x", "y", "x"],
        "positive": ["B", "A", "B"],
        "group": [0, 1, 0],
    }
    assert split.heldout.table.to_pydict() == {
        "row_id": [0, 1],
        "key": [key("z", "C", ""), key("v", "A", "")],
        "query": ["z", "v"],
        "positive": ["C", "A"],
        "group": [2, 1],
    }
    assert split.overlap == 1
    assert split.train.group_N.dtype == np.int32


def test_group_column_by_hand(tmp_path: Path) -> None:
    # p0 and p1 share mark 8; p1 and p3 share the text P: one group of three rows.
    rows: Rows = [("p0", "O", 8), ("p1", "P", 8), ("p2", "Q", 5), ("p3", "P", 4)]
    uri = write(tmp_path / "x.parquet", rows)
    eval_uri = write(tmp_path / "y.parquet", [("p4", "R", 5), ("p5", "S", 1)])
    split = read_split(spec(uri, group="g", eval_uri=eval_uri), EvalSpec())
    assert split.train.group_N.tolist() == [0, 0, 1, 0]
    assert split.heldout.group_N.tolist() == [1, 2]
    assert split.train.table["key"][0].as_py() == key("p0", "O", "8")


def test_triplets_by_hand(tmp_path: Path) -> None:
    rows = [("q0", "A", "B"), ("q1", "B", "X"), ("q2", "C", "Y"), ("q3", "A", "X")]
    columns = dict(zip("qan", (list(c) for c in zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    pq.write_table(pa.table({"q": ["q4"], "a": ["D"], "n": ["A"]}), tmp_path / "y.parquet")
    split = read_split(
        spec(str(tmp_path / "x.parquet"), negative="n", eval_uri=str(tmp_path / "y.parquet")),
        EvalSpec(),
    )
    assert split.train.group_N.tolist() == [0, 1, 2, 0]
    assert split.train.negatives.to_pylist() == ["B", "X", "Y", "X"]
    # B is the positive of group 1; X and Y are no row's, and get numbers beyond D's 3.
    assert split.train.negative_group_N.tolist() == [1, 4, 5, 4]
    assert split.heldout.negative_group_N.tolist() == [0]
    assert split.train.table["key"][0].as_py() == key("q0", "A", "", "B")


def test_a_pair_is_no_triplet(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(30))
    train = read_split(spec(uri), EvalSpec()).train
    assert not train.has_negatives and train.table.schema.equals(SCHEMA)


def test_held_out_rows_never_appear_in_train(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(300, per_group=3))
    split = read_split(spec(uri), EvalSpec(holdout=0.2))
    assert (len(split.train), len(split.heldout)) == (240, 60)
    assert split.overlap == 0
    assert sorted(split.train.group_N) == sorted(list(range(80)) * 3)  # no gap, train first
    assert split.train.group_N[0] == 0
    assert sorted(set(split.heldout.group_N)) == list(range(80, 100))
    everything = Counter(texts(split.train)) + Counter(texts(split.heldout))
    assert everything == Counter((q, a) for q, a, _ in numbered(300, per_group=3))


def test_the_choice_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = numbered(200, per_group=2)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    one, two = (
        read_split(spec(write(tmp_path / name, part)), EvalSpec(holdout=0.1, max_queries=11))
        for name, part in (("a.parquet", rows), ("b.parquet", shuffled))
    )
    assert len(one.heldout) == 10  # whole groups only: five of two rows fit in eleven
    assert set(texts(one.heldout)) == set(texts(two.heldout))
    assert texts(one.heldout) != texts(two.heldout)
    assert len(one.train) == len(two.train) == 190


def test_row_groups_and_files_do_not_matter(tmp_path: Path) -> None:
    rows = numbered(100)
    (tmp_path / "parts").mkdir()
    for start in range(0, 100, 40):
        write(tmp_path / f"parts/{start:03}.parquet", rows[start : start + 40])
    sources = [
        write(tmp_path / "a.parquet", rows),
        write(tmp_path / "b.parquet", rows, row_group_size=7),
        str(tmp_path / "parts"),
    ]
    saved = []
    for number, uri in enumerate(sources):
        folder = Folder(tmp_path / str(number))
        folder.root.mkdir()
        split = read_split(spec(uri), EvalSpec())
        assert split.train.queries.num_chunks == split.heldout.queries.num_chunks == 1
        split.save(folder)
        saved.append([folder.path(f"{name}.parquet").read_bytes() for name in ("train", "heldout")])
    assert saved[0] == saved[1] == saved[2]


def test_a_large_group_is_no_more_likely_to_be_held_out(tmp_path: Path) -> None:
    """One group of 50 rows among 50 of one row: held out about half the time at a share of 0.5."""
    held = 0
    for trial in range(40):
        rows: Rows = [(f"{trial} {i}", f"{trial} {max(i, 49)}", 0) for i in range(100)]
        split = read_split(spec(write(tmp_path / "x.parquet", rows)), EvalSpec(holdout=0.5))
        held += f"{trial} 49" in split.heldout.positives.to_pylist()
    assert 10 <= held <= 30


def test_max_queries_cuts_the_held_out_part(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(100))
    large, small = (read_split(spec(uri), EvalSpec(holdout=0.3, max_queries=n)) for n in (30, 10))
    assert (len(large.heldout), len(small.heldout), len(small.train)) == (30, 10, 90)
    assert set(texts(small.heldout)) < set(texts(large.heldout))


def test_a_group_of_more_than_may_be_held_out_takes_no_others_place(tmp_path: Path) -> None:
    """One answer of 30 rows among 100 of one: some queries are held out whatever the order is."""
    for trial in range(10):
        rows: Rows = [(f"{trial} {i}", f"{trial} {max(i, 30)}", 0) for i in range(130)]
        split = read_split(
            spec(write(tmp_path / "x.parquet", rows)), EvalSpec(holdout=0.2, max_queries=20)
        )
        assert 18 <= len(split.heldout) <= 20
        assert len(split.train) + len(split.heldout) == 130


def test_the_rest_of_an_oversized_group_is_in_neither_part(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(60, per_group=20))
    split = read_split(spec(uri), EvalSpec(max_queries=5))
    assert (len(split.train), len(split.heldout), split.overlap) == (40, 5, 0)


def test_eval_uri_is_capped_by_hash(tmp_path: Path) -> None:
    train, other = numbered(10), [(f"other {q}", a, g) for q, a, g in numbered(50)]
    uri = write(tmp_path / "x.parquet", train)
    keys = {(q, a): key(q, a, "") for q, a, _ in other}
    expected = sorted(keys, key=keys.__getitem__)[:7]
    for name, rows in (("y.parquet", other), ("z.parquet", other[::-1])):
        eval_uri = write(tmp_path / name, rows)
        split = read_split(spec(uri, eval_uri=eval_uri), EvalSpec(max_queries=7))
        assert len(split.heldout) == 7
        assert set(texts(split.heldout)) == set(expected)


@pytest.mark.parametrize("group", [None, "g"])
def test_nothing_to_contrast(tmp_path: Path, group: str | None) -> None:
    rows: Rows = [(str(i), str(i) if group else "A", "same") for i in range(9)]
    uri = write(tmp_path / "x.parquet", rows)
    for eval_uri in (None, uri):
        with pytest.raises(InputError) as caught:
            read_split(spec(uri, group=group, eval_uri=eval_uri), EvalSpec())
        assert str(caught.value) == (
            f"every row of {uri} has the same positive or group: nothing to contrast; "
            "expected at least two groups of rows; check 'positive' and 'group' of the dataset"
        )


def test_two_groups_are_too_few_to_hold_one_out(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(4, per_group=2))
    with pytest.raises(InputError, match="2 groups of rows: with one held out, nothing is left"):
        read_split(spec(uri), EvalSpec())
    other = write(tmp_path / "other.parquet", [("other", "answer 0", 0)])
    assert len(read_split(spec(uri, eval_uri=other), EvalSpec()).train) == 4
    uri = write(tmp_path / "y.parquet", numbered(3))
    assert len(read_split(spec(uri), EvalSpec(holdout=0.99)).train) == 2


def test_rows_to_evaluate_on_that_are_all_trained_on_are_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(40, per_group=2))
    part = write(tmp_path / "part.parquet", numbered(9, per_group=2))
    with pytest.raises(InputError, match="every held-out row of .*part.parquet is trained on"):
        read_split(spec(uri, eval_uri=part), EvalSpec())
    # New questions about what is answered in training are what one may want to know about.
    new = write(tmp_path / "new.parquet", [("new", "answer 0", 0), *numbered(3, per_group=2)])
    split = read_split(spec(uri, eval_uri=new), EvalSpec())
    assert (len(split.heldout), split.overlap, split.repeated) == (4, 4, 3)


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_how_much_of_what_is_evaluated_on_is_trained_on_is_said(tmp_path: Path, task: str) -> None:
    uri = write(tmp_path / "x.parquet", numbered(40, per_group=2))
    rows: Rows = [*numbered(3, per_group=2), ("new", "answer 0", 0), ("new", "alone", 0)]
    both = write(tmp_path / "both.parquet", rows)
    apart = write(tmp_path / "apart.parquet", rows[4:])
    said = {
        "retrieval": "4 of 5 held-out rows of toy are of groups that are trained on, 3 of them the "
        "very same rows",
        "classification": "3 of 5 held-out rows of toy are trained on",
    }
    store = ArtifactStore(str(tmp_path / "store"))
    for eval_uri, counts, warning in (
        (both, {"overlap": 4, "repeated": 3}, said[task]),
        (apart, {"overlap": 0, "repeated": 0}, ""),
        (None, {}, ""),
    ):
        dataset = spec(uri, eval_uri=eval_uri, task=task)
        made = Pairs.of(dataset, EvalSpec()).run(store)
        assert {key: made.counts[key] for key in {"overlap", "repeated"} & {*made.counts}} == counts
        assert PairsRef.of(dataset, made).warnings(store) == ([warning] if warning else [])


def test_errors_of_the_files_come_through(tmp_path: Path) -> None:
    uri = write(tmp_path / "x.parquet", numbered(4))
    with pytest.raises(InputError, match="column 'h' is not in .*; did you mean|set 'group'"):
        read_split(spec(uri, group="h"), EvalSpec())
    with pytest.raises(InputError, match="no file matches"):
        read_split(spec(uri, eval_uri=str(tmp_path / "gone.parquet")), EvalSpec())


def test_saved_and_loaded(tmp_path: Path) -> None:
    split = read_split(spec(write(tmp_path / "x.parquet", numbered(50))), EvalSpec())
    folder = Folder(tmp_path)
    split.save(folder)
    again = Split.load(folder)
    assert again.train.table.equals(split.train.table)
    assert again.heldout.table.equals(split.heldout.table)
    assert again.train.dataset == "toy"
    assert again.train.digest == split.train.digest != split.heldout.digest
    split.train.save(folder)
    assert PairTable.load(folder).table.equals(split.train.table)


def test_digest_is_of_keys_and_groups_alone() -> None:
    table = pair_table(["A", "B"], [0, 1])
    expected = hashlib.sha256(b"kk" + bytes([0, 0, 0, 0, 1, 0, 0, 0])).hexdigest()
    assert table.digest == PairTable("other", table.table).digest == expected
    assert pair_table(["A", "B"], [0, 2]).digest != expected


def test_a_table_that_breaks_its_promise_is_refused() -> None:
    good = pair_table(["A", "B", "A"], [0, 1, 0])
    with pytest.raises(ValueError, match="are not"):
        PairTable("toy", good.table.drop_columns("key"))
    with pytest.raises(ValueError, match="nulls"):
        PairTable("toy", good.table.set_column(2, "query", pa.array([None, "x", "y"])))
    with pytest.raises(ValueError, match="different groups"):
        pair_table(["A", "B", "A"], [0, 1, 2])
    with pytest.raises(ValueError, match="different groups"):
        Split(good, pair_table(["B"], [0]))


def slow_groups(rows: list[tuple[str, str]], *, marked: bool) -> list[int]:
    """Union-find over all pairs of rows: the twin of ``group_ids``."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for i, (positive, mark) in enumerate(rows):
        for j in range(i):
            if rows[j][0] == positive or (marked and rows[j][1] == mark):
                parent[root(i)] = root(j)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(i), len(numbers)) for i in range(len(rows))]


def chunked(values: list[str], cut: int) -> pa.ChunkedArray:
    return pa.chunked_array([values[:cut], values[cut:]], pa.string())


@given(
    st.lists(st.tuples(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("abcdefghij")), max_size=14),
    st.integers(0, 14),
)
def test_groups_equal_union_find(rows: list[tuple[str, str]], cut: int) -> None:
    positive, mark = (chunked([row[side] for row in rows], cut) for side in (0, 1))
    assert group_ids(positive).tolist() == slow_groups(rows, marked=False)
    assert group_ids(positive, mark).tolist() == slow_groups(rows, marked=True)


def table_of(*keys):
    rows = range(len(keys))
    columns = [list(rows), keys, [f"q{i}" for i in rows], [f"p{i}" for i in rows], list(rows)]
    return PairTable(
        "faq", pa.table([pa.array(c) for c in columns], names=SCHEMA.names).cast(SCHEMA)
    )


@pytest.mark.parametrize(
    ("before", "now", "strict", "edited"),
    [
        ("abcd", "abcd", [0, 1, 2, 3], [0, 1, 2, 3]),
        ("abcd", "aXcd", [0, -1, 2, 3], [0, 1, 2, 3]),
        ("abcd", "acd", [0, 2, 3], [0, 2, 3]),
        ("abcd", "aXbcd", [0, -1, 1, 2, 3], [0, -1, 1, 2, 3]),
        ("abcd", "XYcdZ", [-1, -1, 2, 3, -1], [0, 1, 2, 3, -1]),
        ("abcd", "dcba", [3, 2, 1, 0], [3, 2, 1, 0]),
        ("aabb", "baab", [2, 0, 1, 3], [2, 0, 1, 3]),
        ("ab", "bbaa", [1, -1, 0, -1], [1, -1, 0, -1]),
        ("abcd", "aXaY", [0, -1, -1, -1], [0, 1, 2, 3]),
        ("abc", "XYZ", [-1, -1, -1], [0, 1, 2]),
    ],
)
def test_rows_are_found_again(before, now, strict, edited):
    before_N = rows_before(table_of(*now), table_of(*before))
    assert before_N.tolist() == strict
    assert edited_rows(before_N, len(before)).tolist() == edited


@given(st.text("abcde", max_size=30), st.text("abcdefg", max_size=30))
@settings(max_examples=examples(200), deadline=None)
def test_no_row_is_found_twice_and_none_that_is_there_is_missed(before, now):
    before_N = rows_before(table_of(*now), table_of(*before))
    found = before_N[before_N >= 0]
    assert len(set(found.tolist())) == len(found)
    assert all(before[then] == now[row] for row, then in enumerate(before_N) if then >= 0)
    both = Counter(before) & Counter(now)
    assert len(found) == both.total()
    guessed = edited_rows(before_N, len(before))
    assert (guessed[before_N >= 0] == found).all()
    assert len(set(guessed[guessed >= 0].tolist())) == (guessed >= 0).sum()
