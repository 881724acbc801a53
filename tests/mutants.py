"""Mutants of a sound manifest: whole as files and record go, with one thing wrong in them.

    Sound (mined, read) -> Parts -> a kind changes one thing -> write: files, sizes, sha256, record

A kind is named after its function and carries what a refusal must say. Where ``moved`` is set the
mutant lies at the address that its head hashes to, as a careful forger would see to.
"""

import copy
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from b3_core import manifest as module
from b3_core.artifacts import Address
from b3_core.config import BatchSpec, Phase
from b3_core.head import SCHEMA
from b3_core.manifest import SLOTS, Layout, Manifest
from b3_core.neighbours import RankTable
from tests.conftest import topic_table
from tests.core.test_manifest import mine

SIZE = 8
LEFT = pa.schema([("epoch", pa.int32()), ("dataset", pa.int32()), ("row", pa.int32())])
KINDS: dict[str, tuple[str, Callable, str]] = {}


def kind(pattern, only=""):
    """Register a kind: what its refusal must match, and whether it needs one or two datasets."""

    def register(change):
        KINDS[change.__name__] = (pattern, change, only)
        return change

    return register


class Sound:
    """A sound manifest in parts, beside another seed's and one of an earlier state of the data."""

    def __init__(self, folder, monkeypatch, *, datasets):
        # Small files and groups, so that a manifest has several and a wrong layout matters.
        monkeypatch.setattr(module, "GROUP_SLOTS", 2 * SIZE)
        monkeypatch.setattr(module, "FILE_SLOTS", 6 * SIZE)
        self.many = "one" if datasets == 1 else "two"
        phases = (Phase(random_share=1), Phase(), Phase(k=2))
        if datasets == 2:
            phases = (Phase(epochs=2), Phase(random_share=0.5))
        batching = BatchSpec(batch_size=SIZE, curriculum=phases, negatives=2)
        tables = [topic_table(130), topic_table(93, seed=1)][:datasets]
        changed = [topic_table(130, seed=2), *tables[1:]]
        _, stale = mine(folder, batching, *changed)
        _, other = mine(folder, batching, *tables, seed=1)
        self.store, self.stage = mine(folder, batching, *tables)
        self.manifest = Manifest.load(self.store.get(self.stage.address))
        # In memory, for a mutant may come to lie where they are.
        self.stale, self.other = (_files(self.store.get(each.address)) for each in (stale, other))
        self.tables = [ref.table(self.store) for ref in self.stage.refs]
        entries = self.manifest.head["datasets"]
        self.ranks = [
            RankTable.load(self.store.get(Address(entry["name"], "ranks", entry["ranks"])))
            for entry in entries
        ]
        assert len(self.manifest.plan.left_out) > 2

    @property
    def head(self):
        return self.manifest.head

    def parts(self):
        plan = self.manifest.plan
        batches = len(plan.row_SB)
        parts = Parts(
            self,
            copy.deepcopy(self.head),
            {
                "epoch": np.repeat(plan.epoch_S, SIZE),
                "batch": np.repeat(np.arange(batches), SIZE),
                "slot": np.tile(np.arange(SIZE), batches),
                "dataset": plan.dataset_SB.ravel().copy(),
                "row": plan.row_SB.ravel().copy(),
                "row_id": np.zeros(batches * SIZE, np.int64),
                "key": np.full(batches * SIZE, "", object),
                "community": plan.community_SB.ravel().copy(),
                "negatives": self.manifest.negatives.row_SBH.reshape(batches * SIZE, -1).copy(),
            },
            plan.left_out.copy(),
            list(self.manifest.datasets),
        )
        for place in range(batches * SIZE):
            parts.put(place, parts.slots["row"][place])
        return parts

    def write(self, parts):
        """Put a mutant where the manifest was, under a record that is right."""
        address = parts.address() if parts.moved else self.stage.address
        # The first record at an address wins: whatever is at this one must go, sound or not.
        for each in (address, self.stage.address):
            shutil.rmtree(Path(self.store.root, each.path), ignore_errors=True)
        with self.store.draft(address, lineage={}, settings={}) as draft:
            for name, body in parts.files().items():
                if body is not None:
                    draft.path(name).write_bytes(body)
        return self.store.get(address)


def _files(artifact):
    return {name: artifact.path(name).read_bytes() for name in artifact.files}


@dataclasses.dataclass
class Parts:
    """What a manifest's files are written from; kinds change it."""

    sound: Sound
    head: dict
    slots: dict[str, np.ndarray]
    left: np.ndarray
    names: list[str]
    laid_over: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    retable: Callable[[pa.Table], pa.Table] = lambda table: table
    group_slots: int = 2 * SIZE
    moved: bool = False

    def __len__(self):
        return len(self.slots["row"])

    def put(self, place, row):
        """Put a row into a slot, its id and key with it."""
        self.slots["row"][place] = row
        table = self.sound.tables[self.slots["dataset"][place]].table
        if 0 <= row < len(table):
            for name in ("row_id", "key"):
                self.slots[name][place] = _column(table, name)[row]

    def keep(self, kept):
        """Keep some slots alone; batches are counted anew."""
        self.slots = {name: values[kept] for name, values in self.slots.items()}
        batches = len(self) // SIZE
        self.slots["batch"] = np.repeat(np.arange(batches), SIZE)
        self.head["batches"] = batches

    def address(self):
        head = self.head
        inputs = {
            f"{entry['name']}/{variant}": fingerprint
            for entry in head["datasets"]
            for variant, fingerprint in enumerate(entry["communities"])
        }
        given = {"version": head["version"], "settings": head["settings"], "inputs": inputs}
        return Address.of("small", "manifest", **given)

    def table(self, part):
        columns = []
        for field in SLOTS:
            values = self.slots[field.name][part]
            if field.name == "dataset":
                values = pa.DictionaryArray.from_arrays(
                    pa.array(values, pa.int8()), pa.array(self.names)
                )
            elif field.name == "negatives":
                values = pa.array(values.tolist(), field.type)
            columns.append(pa.array(values, field.type))
        return pa.table(columns, schema=SLOTS)

    def files(self):
        layout = Layout(**self.sound.head["layout"])
        found = {}
        for name, batches in layout.files(len(self) // SIZE):
            part = slice(batches.start * SIZE, batches.stop * SIZE)
            table = self.retable(self.table(part))
            found[name] = _parquet(table, row_group_size=self.group_slots)
        left = pa.table([pa.array(self.left[:, i], pa.int32()) for i in range(3)], schema=LEFT)
        found["left_out.parquet"] = _parquet(left)
        found["manifest.json"] = json.dumps(self.head).encode()
        return found | self.laid_over


def _column(table, name, cache={}):  # noqa: B006 - a table's columns, once
    key = id(table), name
    if key not in cache:
        cache[key] = table, table[name].to_numpy()
    return cache[key][1]


def _parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **options)
    return sink.getvalue()


def mutant(sound, name, rng):
    """Write one mutant of a kind; return it as an artifact."""
    parts = sound.parts()
    KINDS[name][1](parts, rng)
    return sound.write(parts)


def kinds(sound):
    """Names of the kinds that a sound manifest can have."""
    return [name for name, (_, _, only) in KINDS.items() if only in ("", sound.many)]


def _slot(parts, rng, chosen=None):
    places = np.arange(len(parts)) if chosen is None else np.flatnonzero(chosen)
    return int(rng.choice(places))


def _batch(place):
    return slice(place // SIZE * SIZE, place // SIZE * SIZE + SIZE)


# Rows


@kind(r"epoch \d+, dataset \d+: a row is none of \d+")
def row_negative(parts, rng):
    parts.put(_slot(parts, rng), -int(rng.integers(1, 1000)))


@kind(r"epoch \d+, dataset \d+: a row is none of \d+")
def row_beyond_the_table(parts, rng):
    place = _slot(parts, rng)
    rows = len(parts.sound.tables[parts.slots["dataset"][place]])
    parts.put(place, rows + int(rng.integers(1000)))


@kind(r"row \d+ is there [02] times")
def row_twice_in_its_batch(parts, rng):
    place = _slot(parts, rng)
    first = _batch(place).start
    parts.put(place, parts.slots["row"][first + (place - first + 1) % SIZE])


@kind(r"row \d+ is there [02] times")
def row_twice_in_its_epoch(parts, rng):
    place = _slot(parts, rng)
    slots = parts.slots
    same = (slots["epoch"] == slots["epoch"][place]) & (slots["dataset"] == slots["dataset"][place])
    same[place] = False
    parts.put(place, slots["row"][_slot(parts, rng, same)])


@kind(r"row \d+ is there [02] times")
def row_replaced_by_one_left_out(parts, rng):
    epoch, dataset, row = parts.left[rng.integers(len(parts.left))]
    slots = parts.slots
    parts.put(_slot(parts, rng, (slots["epoch"] == epoch) & (slots["dataset"] == dataset)), row)


@kind(r"row \d+ is there [02] times")
def rows_of_two_epochs_exchanged(parts, rng):
    slots = parts.slots
    one = _slot(parts, rng, slots["epoch"] == 0)
    other = slots["epoch"] == 1
    other &= (slots["dataset"] == slots["dataset"][one]) & (slots["row"] != slots["row"][one])
    two = _slot(parts, rng, other)
    rows = slots["row"][[one, two]]
    parts.put(one, rows[1])
    parts.put(two, rows[0])


@kind("column row_id of batches")
def row_id_of_another_row(parts, rng):
    parts.slots["row_id"][_slot(parts, rng)] += int(rng.integers(1, 100))


@kind("column key of batches")
def key_of_another_row(parts, rng):
    place = _slot(parts, rng)
    parts.slots["key"][place] = parts.slots["key"][place][::-1] + "0"


# Datasets


@kind(r"dataset \d+: (a row is none|row \d+ is there)", only="two")
def batch_of_the_other_dataset(parts, rng):
    batch = _batch(_slot(parts, rng))
    parts.slots["dataset"][batch] = 1 - parts.slots["dataset"][batch]
    for place in range(batch.start, batch.stop):
        parts.put(place, parts.slots["row"][place])


@kind(r"batch \d+ has rows of several datasets", only="two")
def batch_of_two_datasets(parts, rng):
    place = _slot(parts, rng)
    parts.slots["dataset"][place] = 1 - parts.slots["dataset"][place]
    parts.put(place, parts.slots["row"][place])


@kind("batches are of datasets .*elsewhere")
def batch_of_an_unknown_dataset(parts, rng):
    parts.names.append("elsewhere")
    parts.slots["dataset"][_batch(_slot(parts, rng))] = len(parts.names) - 1


# Epochs, batches, slots


@kind("epochs are not 0, 1, 2")
def epochs_out_of_order(parts, rng):
    epochs = int(parts.slots["epoch"].max()) + 1
    one, two = rng.choice(epochs, 2, replace=False)
    epoch = parts.slots["epoch"]
    parts.slots["epoch"] = np.where(epoch == one, two, np.where(epoch == two, one, epoch))


@kind("epochs are not 0, 1, 2|epochs is 3; expected 2|left_out is of none")
def epoch_missing(parts, rng):
    epoch = int(rng.integers(parts.slots["epoch"].max() + 1))
    parts.keep(parts.slots["epoch"] != epoch)
    parts.left = parts.left[parts.left[:, 0] != epoch]
    parts.head["left_out"] = len(parts.left)


@kind("epochs are not 0, 1, 2")
def epochs_counted_from_elsewhere(parts, rng):
    shift = int(rng.choice([-2, -1, 1, 7]))
    parts.slots["epoch"] = parts.slots["epoch"] + shift
    parts.left[:, 0] += shift


@kind(r"batch \d+ is of several epochs")
def batch_of_two_epochs(parts, rng):
    parts.slots["epoch"][_slot(parts, rng)] += 1


@kind(r"batch \d+ is where another should be")
def batch_number_wrong(parts, rng):
    parts.slots["batch"][_batch(_slot(parts, rng))] += int(rng.integers(1, 9))


@kind(r"batch \d+ has its slots out of order")
def slot_number_wrong(parts, rng):
    place = _slot(parts, rng)
    parts.slots["slot"][place] += int(rng.integers(1, 9))


@kind(r"slots of its row groups is|row \d+ is there 0 times|epochs")
def last_batch_missing(parts, rng):
    parts.keep(np.arange(len(parts)) < len(parts) - SIZE * int(rng.integers(1, 4)))


# Communities


@kind(r"batch \d+ names a community|is in several places")
def community_of_another_row(parts, rng):
    community = parts.slots["community"]
    place = _slot(parts, rng, community >= 0)
    others = np.unique(community[community >= 0])
    community[place] = rng.choice(others[others != community[place]])


@kind(r"batch \d+ names a community|is in several places")
def community_that_is_none(parts, rng):
    community = parts.slots["community"]
    community[_slot(parts, rng, community >= 0)] = 10_000 + int(rng.integers(100))


@kind("community -[0-9]+ is negative|is in several places")
def community_negative(parts, rng):
    parts.slots["community"][_slot(parts, rng)] = -int(rng.integers(2, 100))


@kind(r"batch \d+ lacks a community|is in several places")
def community_taken_away(parts, rng):
    slots, plan = parts.slots, parts.sound.manifest.plan
    chosen = (slots["epoch"] == 1) & (slots["community"] >= 0)
    before = plan.left_out[plan.left_out[:, 0] == 0]
    for _, dataset, row in before:
        chosen &= ~((slots["dataset"] == dataset) & (slots["row"] == row))
    slots["community"][_slot(parts, rng, chosen)] = -1


@kind(r"batch \d+ (has|names) a community|is in several places", only="one")
def community_in_a_random_epoch(parts, rng):
    slots = parts.slots
    slots["community"][_slot(parts, rng, slots["epoch"] == 0)] = int(rng.integers(30))


# Negatives


@kind(r"batch \d+, slot \d+, negative \d+: \d+ is of a member's group|too near")
def negative_of_its_own_group(parts, rng):
    place = _slot(parts, rng)
    member = _batch(place).start + int(rng.integers(SIZE))
    _set_negative(parts, rng, place, parts.slots["row"][member])


@kind(r"batch \d+, slot \d+, negative \d+: \d+ is (too near a member|of a member's group)")
def negative_too_near(parts, rng):
    place = _slot(parts, rng)
    ranks = parts.sound.ranks[parts.slots["dataset"][place]]
    _set_negative(parts, rng, place, ranks.neighbour_NM[parts.slots["row"][place], rng.integers(2)])


@kind(r"batch \d+, slot \d+, negative \d+: -?\d+ is no row of \d+")
def negative_out_of_range(parts, rng):
    place = _slot(parts, rng)
    rows = len(parts.sound.tables[parts.slots["dataset"][place]])
    value = rng.choice([-2, -50, rows, rows + 1000])
    _set_negative(parts, rng, place, value)


@kind(r"batch \d+, slot \d+, negative \d+: \d+ is of the group of an earlier negative")
def negative_twice(parts, rng):
    place = _slot(parts, rng, (parts.slots["negatives"] >= 0).all(axis=1))
    parts.slots["negatives"][place, 1] = parts.slots["negatives"][place, 0]


@kind(r"batch \d+, slot \d+, negative \d+: \d+ is (in no member's|too near|of a member's|of the)")
def negative_from_nowhere(parts, rng):
    place = _slot(parts, rng)
    dataset = parts.slots["dataset"][place]
    ranks, members = parts.sound.ranks[dataset], parts.slots["row"][_batch(place)]
    windows = ranks.neighbour_NM[members, 2:12]
    outside = np.setdiff1d(np.arange(len(parts.sound.tables[dataset])), windows)
    _set_negative(parts, rng, place, rng.choice(outside))


@kind(r"batch \d+, slot \d+, negative \d+: -1 is no row, but")
def negative_left_empty(parts, rng):
    place = _slot(parts, rng, parts.slots["negatives"][:, 0] >= 0)
    parts.slots["negatives"][place, 0] = -1
    parts.head["negatives_short"] = int((parts.slots["negatives"] == -1).sum())


@kind(r"has slots without 2 negatives")
def negatives_of_another_number(parts, rng):
    place = _slot(parts, rng)
    lists = parts.slots["negatives"].tolist()
    lists[place] = lists[place][:1] if rng.random() < 0.5 else [*lists[place], 0]
    ragged = np.empty(len(lists), object)
    ragged[:] = lists
    parts.slots["negatives"] = ragged


def _set_negative(parts, rng, place, value):
    negatives = parts.slots["negatives"]
    filled = np.flatnonzero(negatives[place] >= 0)
    at = rng.choice(filled) if filled.size else 0
    negatives[place, at] = value if value != negatives[place, at] else -7
    parts.head["negatives_short"] = int((negatives == -1).sum())


# Rows left out


@kind(r"row \d+ is there [02] times")
def left_out_names_another_row(parts, rng):
    place = rng.integers(len(parts.left))
    dataset = parts.left[place, 1]
    rows = len(parts.sound.tables[dataset])
    parts.left[place, 2] = (parts.left[place, 2] + rng.integers(1, rows)) % rows
    _sort_left(parts)


@kind(r"row \d+ is there 0 times")
def left_out_lacks_a_row(parts, rng):
    parts.left = np.delete(parts.left, rng.integers(len(parts.left)), axis=0)
    parts.head["left_out"] = len(parts.left)


@kind(r"row \d+ is there 2 times")
def left_out_has_a_row_more(parts, rng):
    place = _slot(parts, rng)
    more = [parts.slots[name][place] for name in ("epoch", "dataset", "row")]
    parts.left = np.vstack([parts.left, more])
    parts.head["left_out"] = len(parts.left)
    _sort_left(parts)


@kind("left_out is not sorted")
def left_out_in_another_order(parts, rng):
    one, two = rng.choice(len(parts.left), 2, replace=False)
    parts.left[[one, two]] = parts.left[[two, one]]


@kind("left_out is of none of the|a row is none of")
def left_out_beyond_everything(parts, rng):
    column = rng.integers(3)
    parts.left[rng.integers(len(parts.left)), column] += 1000
    _sort_left(parts)


@kind(r"left_out\.parquet has columns")
def left_out_of_other_columns(parts, rng):
    names = [["epoch", "dataset", "row_id"], ["a", "b", "c"]][rng.integers(2)]
    columns = [pa.array(parts.left[:, i], pa.int32()) for i in range(3)]
    parts.laid_over["left_out.parquet"] = _parquet(pa.table(columns, names=names))


def _sort_left(parts):
    parts.left = parts.left[np.lexsort(parts.left.T[::-1])]


# The head


@kind("batch_size is|has a wrong 'batch_size'")
def head_batch_size(parts, rng):
    parts.head["batch_size"] = int(rng.choice([0, 1, 4, 7, 9, 16, -8]))


@kind("k is|has a wrong 'k'")
def head_k(parts, rng):
    parts.head["k"] = int(rng.choice([0, 1, 2, 3, 5, 8, -4]))


@kind("slots of its row groups is|has files|layout is|has a wrong 'layout")
def head_layout(parts, rng):
    key = rng.choice(["file_batches", "group_batches"])
    true = parts.head["layout"][key]
    parts.head["layout"][key] = int(
        rng.choice([v for v in (0, 1, 3, 4, 6, 12, 10**9) if v != true])
    )


@kind("has files|slots of its row groups is|has a wrong 'batches'")
def head_batches(parts, rng):
    parts.head["batches"] += int(rng.choice([-20, -3, -1, 1, 2, 30, 10**9]))


@kind("has schema version")
def head_schema(parts, rng):
    parts.head["schema"] = [0, 1, 2, SCHEMA - 1, SCHEMA + 1, None, str(SCHEMA)][rng.integers(7)]


@kind("manifest of other settings")
def head_version(parts, rng):
    parts.head["version"] += int(rng.choice([-10_000, -1, 1, 100]))


@kind("left_out is|has a wrong 'left_out'")
def head_left_out(parts, rng):
    parts.head["left_out"] += int(rng.choice([-1, 1, 5, -1000]))


@kind("duplicates is|has a wrong 'duplicates'")
def head_duplicates(parts, rng):
    parts.head["duplicates"] += int(rng.choice([1, 2, 50, -1000]))


@kind("negatives is|has a wrong 'negatives'")
def head_negatives(parts, rng):
    parts.head["negatives"] = int(rng.choice([0, 1, 3, -2]))


@kind("negatives_short is|has a wrong 'negatives_short'")
def head_negatives_short(parts, rng):
    parts.head["negatives_short"] += int(rng.choice([1, 7, -1000]))


@kind("variant_of_epoch is")
def head_variant_of_epoch(parts, rng):
    variants = parts.head["variant_of_epoch"]
    if rng.random() < 0.3:
        variants.append(0)
    else:
        variants[rng.integers(len(variants))] += int(rng.choice([-3, 2, 5]))


@kind(r"has a wrong '[a-z_.0-9]+': Field required|has schema version None")
def head_lacks_a_key(parts, rng):
    holder, key = _some_key(parts, rng)
    del holder[key]


@kind(r"has a wrong '[a-z_.0-9]+': Extra inputs")
def head_has_a_key_more(parts, rng):
    holder = [parts.head, parts.head["datasets"][0], parts.head["layout"], parts.head["settings"]]
    holder[rng.integers(4)][f"more{rng.integers(9)}"] = 1


@kind(r"has a wrong '[a-z_.0-9]+'|has schema version")
def head_of_wrong_types(parts, rng):
    holder, key = _some_key(parts, rng)
    true = holder[key]
    wrong = [
        value for value in (True, "8", 8.5, None, [7], {"a": 7}) if type(value) is not type(true)
    ]
    holder[key] = wrong[rng.integers(len(wrong))]


def _some_key(parts, rng):
    head = parts.head
    holders = [head, head["layout"], head["settings"], *head["datasets"]]
    holder = holders[rng.integers(len(holders))]
    return holder, list(holder)[rng.integers(len(holder))]


@kind("is no JSON")
def head_no_json(parts, rng):
    body = json.dumps(parts.head).encode()
    parts.laid_over["manifest.json"] = [b"", b"[]", b"7", b"\xff\xfe", body[: len(body) // 2]][
        rng.integers(5)
    ]


@kind("manifest of other settings|expected|has a wrong")
def head_settings_of_another_run(parts, rng):
    settings = parts.head["settings"]
    place = rng.integers(5)
    if place == 0:
        settings["seed"] += int(rng.integers(1, 9))
    elif place == 1:
        settings["weights"][0] += 1.0
    elif place == 2:
        settings["mining"]["evenness"] = 0.25
    elif place == 3:
        settings["batches"]["mixing"] = "round-robin"
    else:
        settings["mining"]["k"] = 2


# The head's datasets and lineage


@kind("manifest of other settings")
def dataset_renamed(parts, rng):
    entry = parts.head["datasets"][rng.integers(len(parts.names))]
    name = f"{entry['name']}{rng.integers(9)}"
    parts.names[parts.names.index(entry["name"])] = name
    entry["name"] = name


@kind("no finished artifact at .*/pairs/|no finished artifact at .*/ranks/")
def dataset_renamed_and_moved(parts, rng):
    dataset_renamed(parts, rng)
    parts.moved = True


@kind("settings.weights is|manifest of other settings|has a wrong 'datasets'")
def dataset_missing(parts, rng):
    del parts.head["datasets"][rng.integers(len(parts.names))]


@kind("settings.weights is|datasets is")
def dataset_twice(parts, rng):
    parts.head["datasets"].append(parts.head["datasets"][0])


@kind("settings.weights is")
def dataset_more(parts, rng):
    parts.head["datasets"].append(parts.head["datasets"][0] | {"name": f"more{rng.integers(9)}"})


@kind(r"dataset \d+: (row|a row)|left_out is|epoch", only="two")
def datasets_in_another_order(parts, rng):
    parts.head["datasets"].reverse()


@kind("rows is")
def dataset_rows(parts, rng):
    _entry(parts, rng)["rows"] += int(rng.choice([-1, 1, 100]))


@kind("digest is|pairs that were ranked is")
def dataset_digest(parts, rng):
    entry = _entry(parts, rng)
    entry["digest"] = entry["digest"][::-1]


@kind("p of|m of")
def dataset_window(parts, rng):
    _entry(parts, rng)[rng.choice(["p", "m"])] += int(rng.integers(1, 9))


@kind("[pm] of its graphs is")
def dataset_window_and_moved(parts, rng):
    key, more = rng.choice(["p", "m"]), int(rng.integers(1, 9))
    parts.head["settings"]["mining"][key] += more
    for entry in parts.head["datasets"]:
        entry[key] += more
    parts.moved = True


@kind("quality is|teacher is")
def dataset_figures(parts, rng):
    entry = _entry(parts, rng)
    if rng.random() < 0.5:
        entry["quality"][0]["window"] += float(rng.integers(1, 9))
    else:
        entry["teacher"]["weights"] = "another's"


@kind("earlier ranks is")
def dataset_earlier(parts, rng):
    _entry(parts, rng)["earlier"] = {"pairs": "a", "ranks": f"{rng.integers(9)}", "communities": []}


@kind("lineage (names|lacks)|digest is|no finished artifact")
def pairs_of_another_version(parts, rng):
    entry = parts.head["datasets"][0]
    entry["pairs"] = _stale(parts)["pairs"]


@kind("no finished artifact|is|lineage")
def ranks_of_another_version(parts, rng):
    entry = parts.head["datasets"][0]
    entry["ranks"] = _stale(parts)["ranks"]


@kind("manifest of other settings")
def communities_of_another_version(parts, rng):
    entry = parts.head["datasets"][0]
    entry["communities"] = _stale(parts)["communities"]


@kind("pairs of its communities is|quality is|ranks of its graphs is")
def communities_of_another_version_and_moved(parts, rng):
    communities_of_another_version(parts, rng)
    parts.moved = True


@kind("row|column|names a community|left_out|duplicates|negative")
def datasets_of_another_version(parts, rng):
    """The whole entry and lineage of another state of the data; the batches are the old ones."""
    head = json.loads(parts.sound.stale["manifest.json"])
    parts.head["datasets"], parts.head["lineage"] = head["datasets"], head["lineage"]
    parts.moved = True


@kind("names a community|seed")
def communities_of_another_seed(parts, rng):
    head = json.loads(parts.sound.other["manifest.json"])
    parts.head["datasets"], parts.head["lineage"] = head["datasets"], head["lineage"]
    parts.head["settings"] = head["settings"]
    parts.moved = True


@kind("lineage lacks")
def lineage_lacks_an_artifact(parts, rng):
    lineage = parts.head["lineage"]
    del lineage[list(lineage)[rng.integers(len(lineage))]]


@kind("lineage names")
def lineage_names_another(parts, rng):
    path = rng.choice(["faq/pairs/0123456789abcdef0123", "a/b", "", "../../x/y/z"])
    parts.head["lineage"][str(path)] = {}


@kind("was made again since|has a wrong 'lineage")
def lineage_of_other_bytes(parts, rng):
    files = parts.head["lineage"][
        list(parts.head["lineage"])[rng.integers(len(parts.head["lineage"]))]
    ]
    name = list(files)[rng.integers(len(files))]
    size, sha256 = files[name]
    files[name] = [[size + 1, sha256], [size, sha256[::-1]], [], [size]][rng.integers(4)]


def _entry(parts, rng):
    return parts.head["datasets"][rng.integers(len(parts.names))]


def _stale(parts):
    return json.loads(parts.sound.stale["manifest.json"])["datasets"][0]


# Files


@kind(r"has files|has no file manifest\.json")
def file_missing(parts, rng):
    names = sorted(parts.files())
    parts.laid_over[names[rng.integers(len(names))]] = None


@kind("has files")
def file_more(parts, rng):
    parts.laid_over[f"more{rng.integers(9)}.parquet"] = parts.files()["left_out.parquet"]


@kind(r"\.parquet cannot be read: ")
def file_truncated(parts, rng):
    files = {n: body for n, body in parts.files().items() if n.endswith("parquet")}
    name = sorted(files)[rng.integers(len(files))]
    parts.laid_over[name] = files[name][: rng.integers(len(files[name]))]


@kind(r"\.parquet cannot be read: ")
def file_of_noise(parts, rng):
    names = sorted(name for name in parts.files() if name.endswith("parquet"))
    noise = bytes(rng.integers(0, 256, 200, dtype=np.uint8))
    parts.laid_over[names[rng.integers(len(names))]] = b"PAR1" + noise + b"PAR1"


@kind(r"batch \d+ is where another should be|slots of its row groups is")
def files_exchanged(parts, rng):
    files = parts.files()
    names = sorted(name for name in files if name.startswith("batches"))
    one, two = rng.choice(names, 2, replace=False)
    parts.laid_over = {one: files[two], two: files[one]}


@kind(r"row \d+ is there|names a community|negative|a row|epochs|column|several|duplicates|is of")
def file_of_another_seed(parts, rng):
    other = parts.sound.other
    names = sorted(name for name in other if name.startswith("batches"))
    name = names[rng.integers(len(names))]
    parts.laid_over[name] = other[name]


@kind("manifest of other settings")
def all_of_another_seed(parts, rng):
    """Sound in itself, but at the wrong address."""
    parts.laid_over = dict.fromkeys(parts.files()) | parts.sound.other


@kind(r"batches-\d+\.parquet has columns")
def slots_of_other_columns(parts, rng):
    name = SLOTS.names[rng.integers(len(SLOTS.names))]
    if rng.random() < 0.5:
        parts.retable = lambda table: table.drop_columns(name)
    else:
        at = SLOTS.names.index(name)
        parts.retable = lambda table: table.rename_columns(
            [*SLOTS.names[:at], name + "s", *SLOTS.names[at + 1 :]]
        )


@kind(r"batches-\d+\.parquet has columns")
def slots_of_other_types(parts, rng):
    name = rng.choice(["epoch", "batch", "slot", "row", "row_id", "community"])
    at = SLOTS.names.index(name)
    parts.retable = lambda table: table.set_column(at, name, table[name].cast(pa.float64()))


@kind(r"column [a-z_]+ of batches-\d+\.parquet holds nulls|without 2 negatives")
def slots_with_nulls(parts, rng):
    at = int(rng.integers(len(SLOTS.names)))
    row = int(rng.integers(SIZE))

    def holes(table):
        mask = pa.array(np.arange(len(table)) == row)
        values = table.column(at).combine_chunks()
        null = pa.nulls(len(table), values.type)
        if pa.types.is_dictionary(values.type):
            indices = pc.if_else(mask, pa.scalar(None, pa.int8()), values.indices)
            holed = pa.DictionaryArray.from_arrays(indices, values.dictionary)
        else:
            holed = pc.if_else(mask, null, values)
        return table.set_column(at, SLOTS.field(at), holed)

    parts.retable = holes


@kind("slots of its row groups is")
def row_groups_of_another_size(parts, rng):
    parts.group_slots = int(rng.choice([SIZE, 3 * SIZE, 5, 7]))


@kind("slots of its row groups is|has files|batch")
def slots_cut_off(parts, rng):
    cut = int(rng.integers(1, SIZE))
    parts.retable = lambda table: table.slice(0, len(table) - cut)
