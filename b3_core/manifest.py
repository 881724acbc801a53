"""The manifest: which rows meet in which batch, and everything needed to trust it.

Files of a manifest artifact:

``batches-00000.parquet``, ``batches-00001.parquet``, ...
    A line a slot, sorted by (epoch, batch, slot): ``epoch, batch, slot, dataset, row, row_id, key,
    community, negatives``. ``batch`` counts through all epochs; ``row`` is the position in the
    dataset's pairs table, ``row_id`` in its source. A batch has one ``dataset``, unless
    ``settings.batches.mixing`` in the head is ``across``. ``community`` is -1 where rows were drawn
    at random, and else numbered in the communities that the epoch uses (``variant_of_epoch`` in the
    head). ``negatives`` are rows of the same dataset, -1 where the batch's windows hold no more.
    Files and their row groups hold whole batches, as many each as ``layout`` in the head says: any
    batch is found without a look at the others (:mod:`b3_core.stream`). Pages carry a CRC-32.
``left_out.parquet``
    Rows that an epoch leaves out because a last batch would not be full.
``manifest.json``
    The head: settings, seed, datasets, lineage with every file's size and sha256, quality.

The bytes of all depend on data, settings and seed alone: times, paths and machines are in
the artifact's record.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from b3_core import head as heads
from b3_core.artifacts import Address
from b3_core.batches import BatchPlan
from b3_core.communities import Partition
from b3_core.config import BatchSpec
from b3_core.errors import CorruptArtifactError, InputError, reason
from b3_core.head import same
from b3_core.negatives import Negatives
from b3_core.neighbours import RankTable
from b3_core.pairs import PairTable, RowGroups
from b3_core.progress import Progress, silent
from b3_core.store import Artifact, ArtifactStore, Draft

VERSION = 6

# Of one file and of one row group, about. 32 groups have a footer of some 40 kB: pyarrow gets it by
# one read, if it is below 64 kB, and it does not grow with the manifest.
FILE_SLOTS = 1 << 19
GROUP_SLOTS = 1 << 14

SLOTS = pa.schema(
    [
        ("epoch", pa.int16()),
        ("batch", pa.int32()),
        ("slot", pa.int32()),
        ("dataset", pa.dictionary(pa.int8(), pa.string())),
        ("row", pa.int32()),
        ("row_id", pa.int64()),
        ("key", pa.string()),
        ("community", pa.int32()),
        ("negatives", pa.list_(pa.int32())),
    ]
)
_LEFT_OUT = pa.schema([("epoch", pa.int32()), ("dataset", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class Layout:
    """Which file and row group a batch is in."""

    file_batches: int
    group_batches: int

    @classmethod
    def of(cls, batch_size: int) -> Self:
        """Choose whole batches for each: row groups of whole batches, files of whole groups."""
        group = max(GROUP_SLOTS // batch_size, 1)
        return cls(max(FILE_SLOTS // (group * batch_size), 1) * group, group)

    def files(self, batches: int) -> list[tuple[str, range]]:
        """Name the files of a manifest and the batches in each."""
        return [
            (self.name(first), range(first, min(first + self.file_batches, batches)))
            for first in range(0, batches, self.file_batches)
        ]

    def name(self, batch: int) -> str:
        """Name the file that a batch is in."""
        return f"batches-{batch // self.file_batches:05}.parquet"


@dataclass(frozen=True)
class Manifest:
    """A batch plan together with its head."""

    head: dict[str, Any]
    plan: BatchPlan
    negatives: Negatives

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, in the order of ``plan.dataset_SB``."""
        return [entry["name"] for entry in self.head["datasets"]]

    def save(self, draft: Draft, pairs: Sequence[PairTable]) -> None:
        """Write all files; ``pairs`` are the datasets' tables, in order."""
        layout = Layout(**self.head["layout"])
        for name, batches in layout.files(len(self.plan.row_SB)):
            pq.write_table(
                self._slots(batches, pairs),
                draft.path(name),
                compression="zstd",
                row_group_size=layout.group_batches * self.head["batch_size"],
                write_page_checksum=True,
            )
        left = self.plan.left_out
        pq.write_table(
            pa.table([left[:, 0], left[:, 1], left[:, 2]], schema=_LEFT_OUT),
            draft.path("left_out.parquet"),
            compression="zstd",
        )
        draft.write_json("manifest.json", self.head)

    def _slots(self, batches: range, pairs: Sequence[PairTable]) -> pa.Table:
        """Return some batches' lines."""
        every = pa.concat_tables([table.table.select(["row_id", "key"]) for table in pairs])
        long = every.schema.set(1, pa.field("key", pa.large_string()))  # 2 GiB are 67 million keys
        every = every.cast(long)
        part = slice(batches.start, batches.stop)
        row_SB = self.plan.row_SB[part]
        dataset_SB, negative_SBH = self.plan.dataset_SB[part], self.negatives.row_SBH[part]
        size, each = row_SB.shape[1], negative_SBH.shape[2]
        offset = np.concatenate([[0], np.cumsum([len(table) for table in pairs])])
        named = every.take(pa.array((row_SB + offset[dataset_SB]).ravel()))
        names = pa.array([table.dataset for table in pairs])
        columns = [
            np.repeat(self.plan.epoch_S[part], size),
            np.repeat(np.arange(batches.start, batches.stop, dtype=np.int32), size),
            np.tile(np.arange(size, dtype=np.int32), len(batches)),
            pa.DictionaryArray.from_arrays(pa.array(dataset_SB.ravel().astype(np.int8)), names),
            row_SB.ravel(),
            named["row_id"].combine_chunks(),
            named["key"].combine_chunks().cast(pa.string()),
            self.plan.community_SB[part].ravel(),
            pa.ListArray.from_arrays(
                np.arange(len(batches) * size + 1, dtype=np.int32) * each, negative_SBH.ravel()
            ),
        ]
        return pa.table(columns, schema=SLOTS)

    @staticmethod
    def read_head(artifact: Artifact) -> dict[str, Any]:
        """Read ``manifest.json`` alone, and check it as far as that goes (:mod:`b3_core.head`).

        Raises
        ------
        InputError
            The artifact is no manifest, or of another schema version.
        CorruptArtifactError
            The head contradicts itself, or the address it is at.
        """
        if artifact.address.stage != "manifest":
            raise InputError(
                f"{artifact.uri} is a {artifact.address.stage} artifact",
                expected="a manifest",
                remedy="take the URI from the output of b3 mine",
            )
        return heads.read(artifact)

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read a manifest back; sizes, hashes and the form of every file are checked on the way.

        Raises
        ------
        CorruptArtifactError
            A file is not what was recorded, or not what the head says of it.
        """
        head = cls.read_head(artifact)
        table = _read_slots(artifact, head)
        left = _read_table(artifact, "left_out.parquet", _LEFT_OUT)
        size = head["batch_size"]

        def column(name: str) -> Any:
            return table[name].to_numpy().reshape(-1, size)

        dataset = table["dataset"].combine_chunks()
        index = {entry["name"]: i for i, entry in enumerate(head["datasets"])}
        known = dataset.dictionary.to_pylist()
        if not index.keys() >= set(known):
            raise CorruptArtifactError(
                f"{artifact.uri}: batches are of datasets {', '.join(map(str, known))}",
                expected=", ".join(index),
                remedy="mine again",
            )
        to_index = np.array([index[name] for name in known], np.int16)
        dataset_SB = to_index[dataset.indices.to_numpy()].reshape(-1, size)
        across = head["settings"]["batches"]["mixing"] == "across"
        _check_slots(artifact.uri, column, None if across else dataset_SB)
        plan = BatchPlan(
            row_SB=column("row"),
            dataset_SB=dataset_SB,
            epoch_S=column("epoch")[:, 0],
            community_SB=column("community"),
            left_out=np.column_stack([left[name].to_numpy() for name in _LEFT_OUT.names]),
            duplicates=head["duplicates"],
        )
        flat = table["negatives"].combine_chunks().flatten().to_numpy()
        return cls(head, plan, Negatives(flat.reshape(*plan.row_SB.shape, head["negatives"])))

    def check(self, tables: Sequence[PairTable | RowGroups], *, where: str) -> None:
        """Check the plan against the datasets' rows: what must hold before anything is trained.

        Parameters
        ----------
        tables
            The datasets' training rows, in the manifest's order.
        where
            The manifest's URI, for the message.

        Raises
        ------
        CorruptArtifactError
            They are other datasets or other rows, or an invariant of the plan is broken.
        """
        same(where, {"datasets": self.datasets}, {"datasets": [t.dataset for t in tables]})
        for entry, table in zip(self.head["datasets"], tables, strict=True):
            expected = {"rows": len(table), "digest": table.digest}
            same(f"{where}: dataset {entry['name']}", entry, expected)
        try:
            self.plan.check([len(table) for table in tables])
        except ValueError as error:
            raise CorruptArtifactError(f"{where}: {error}", remedy="mine again") from error
        found = {
            "epochs": len(self.head["variant_of_epoch"]),
            **{name: self.head[name] for name in ("left_out", "duplicates", "negatives_short")},
        }
        expected = {
            "epochs": int(self.plan.epoch_S[-1]) + 1,
            "left_out": len(self.plan.left_out),
            "duplicates": self.plan.count_duplicates([table.group_N for table in tables]),
            "negatives_short": self.negatives.shortage,
        }
        same(where, found, expected)


def verify(artifact: Artifact) -> dict[str, Any]:
    """Check a manifest against everything it was made from.

    Every file's size and sha256, of the manifest and of each artifact in its lineage; the head
    against their records; the invariants of the batch plan; rows, communities and negatives against
    pairs, communities and ranks. What is not redone is the drawing itself.

    Returns
    -------
    dict
        Counts of what was checked.

    Raises
    ------
    B3Error
        The first fault, by name.
    """
    return _verify(artifact, _Upstream(_store_of(artifact), hashed=True))


def verify_before_training(artifacts: Sequence[Artifact], progress: Progress = silent) -> None:
    """Check manifests of one store as ``verify`` does, as far as they decide what is trained.

    Files upstream that no batch is compared with, such as embeddings, are looked at by record and
    size alone: training has no use for their bytes, and from S3 all of them would be fetched.
    What several manifests share is read once, but for ranks, which are large.

    Raises
    ------
    B3Error
        The first fault, by name.
    """
    if not artifacts:
        return
    upstream = _Upstream(_store_of(artifacts[0]), hashed=False)
    for done, artifact in enumerate(artifacts):
        progress(done, len(artifacts))
        _verify(artifact, upstream)
    progress(len(artifacts), len(artifacts))


class _Upstream:
    """What manifests of a store stand on: a record or a table of pairs is read once.

    Parameters
    ----------
    hashed
        Whether every file is to be hashed, or those alone that batches are compared with.
    """

    def __init__(self, store: ArtifactStore, *, hashed: bool) -> None:
        self.hashed = hashed
        self.get = functools.cache(store.get)
        self.pairs = functools.cache(self._pairs)

    def _pairs(self, dataset: str, fingerprint: str) -> PairTable:
        return PairTable.load(self.get(Address(dataset, "pairs", fingerprint)), "train")


def _store_of(artifact: Artifact) -> ArtifactStore:
    assert isinstance(artifact.store, ArtifactStore)
    return artifact.store


def _verify(artifact: Artifact, upstream: _Upstream) -> dict[str, Any]:
    manifest = Manifest.load(artifact)
    head, plan = manifest.head, manifest.plan
    files = _verify_lineage(upstream, head, artifact.uri)
    tables = [upstream.pairs(entry["name"], entry["pairs"]) for entry in head["datasets"]]
    manifest.check(tables, where=artifact.uri)
    try:
        _check_negatives(manifest, upstream, tables)
    except ValueError as error:
        raise CorruptArtifactError(f"{artifact.uri}: {error}", remedy="mine again") from error
    variant_of = np.array(head["variant_of_epoch"])
    for d, entry in enumerate(head["datasets"]):
        for variant, fingerprint in enumerate(entry["communities"]):
            communities = upstream.get(Address(entry["name"], "communities", fingerprint))
            slot_SB = plan.slots_of(d, variant_of[plan.epoch_S] == variant)
            _check_communities(plan, slot_SB, Partition.load(communities).label_N, artifact.uri)
        _check_drawn(plan, d, BatchSpec(**head["settings"]["batches"]), artifact.uri)
    for name, batches in Layout(**head["layout"]).files(len(plan.row_SB)):
        stored, expected = pq.read_table(artifact.path(name)), manifest._slots(batches, tables)
        for column in SLOTS.names:
            if not stored[column].equals(expected[column]):
                raise CorruptArtifactError(
                    f"{artifact.uri}: column {column} of {name} differs from the datasets'",
                    remedy="mine again",
                )
    return {
        "batches": len(plan.row_SB),
        "rows": sum(len(table) for table in tables),
        "files": files + len(artifact.files),
    }


def _read_table(artifact: Artifact, name: str, schema: pa.Schema) -> pa.Table:
    path = artifact.path(name)
    try:
        table = pq.read_table(path, memory_map=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifactError(
            f"{artifact.uri}: {name} cannot be read: {reason(error)}", remedy="mine again"
        ) from error
    if not table.schema.equals(schema):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise CorruptArtifactError(
            f"{artifact.uri}: {name} has columns {found}",
            expected=", ".join(f"{field.name} {field.type}" for field in schema),
            remedy="mine again",
        )
    for column in table.column_names:
        if table[column].null_count:
            raise CorruptArtifactError(
                f"{artifact.uri}: column {column} of {name} holds nulls", remedy="mine again"
            )
    return table


def _read_slots(artifact: Artifact, head: dict[str, Any]) -> pa.Table:
    """Read the slots of all batches; files and row groups hold what the layout says."""
    layout, batches, size = Layout(**head["layout"]), head["batches"], head["batch_size"]
    many = -(-batches // layout.file_batches)  # a wrong number must not become a long list
    named = {"left_out.parquet", "manifest.json"}
    if len(artifact.files) == many + len(named):
        named |= {name for name, _ in layout.files(batches)}
    if artifact.files.keys() != named:
        raise CorruptArtifactError(
            f"{artifact.uri} has files {', '.join(sorted(artifact.files))}",
            expected=f"{many} of batches, left_out.parquet and manifest.json",
            remedy="delete that folder and mine again",
        )
    parts = [SLOTS.empty_table()]
    for name, held in layout.files(batches):
        parts.append(_read_table(artifact, name, SLOTS))
        footer = pq.read_metadata(artifact.path(name))
        groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        each = range(held.start, held.stop, layout.group_batches)
        expected = [min(layout.group_batches, held.stop - first) * size for first in each]
        same(
            f"{artifact.uri}: {name}",
            {"slots of its row groups": groups},
            {"slots of its row groups": expected},
        )
        lengths = pc.list_value_length(parts[-1]["negatives"]).to_numpy()
        if (lengths != head["negatives"]).any() or _nulls_in_lists(parts[-1]["negatives"]):
            raise CorruptArtifactError(
                f"{artifact.uri}: {name} has slots without {head['negatives']} negatives",
                remedy="mine again",
            )
    return pa.concat_tables(parts).unify_dictionaries()


def _nulls_in_lists(lists: pa.ChunkedArray) -> int:
    return sum(chunk.flatten().null_count for chunk in lists.chunks)


def _check_slots(where: str, column: Any, dataset_SB: npt.NDArray[np.int16] | None) -> None:
    """Check that lines are in order, and that a batch has one epoch and, if given, one dataset."""
    epoch_SB = column("epoch")
    batches, size = epoch_SB.shape
    wrong = {
        "is where another should be": column("batch") != np.arange(batches)[:, None],
        "has its slots out of order": column("slot") != np.arange(size),
        "is of several epochs": epoch_SB != epoch_SB[:, :1],
    }
    if dataset_SB is not None:
        wrong["has rows of several datasets"] = dataset_SB != dataset_SB[:, :1]
    for what, wrong_SB in wrong.items():
        if wrong_SB.any():
            batch = np.flatnonzero(wrong_SB.any(axis=1))[0]
            raise CorruptArtifactError(f"{where}: batch {batch} {what}", remedy="mine again")


def _check_negatives(manifest: Manifest, upstream: _Upstream, tables: Sequence[PairTable]) -> None:
    entries = manifest.head["datasets"]
    if not manifest.head["negatives"]:
        return
    manifest.negatives.check(
        manifest.plan,
        ranks=[
            None
            if _is_labelled(entry, manifest.head)
            else RankTable.load(upstream.get(Address(entry["name"], "ranks", entry["ranks"])))
            for entry in entries
        ],
        group_of=[table.group_N for table in tables],
        p_of=[entry["p"] for entry in entries],
        m=entries[0]["m"],
    )


def _check_communities(
    plan: BatchPlan, slot_SB: npt.NDArray[np.bool_], label_N: npt.NDArray[np.int32], where: str
) -> None:
    community_X = plan.community_SB[slot_SB]
    wrong_X = (label_N[plan.row_SB[slot_SB]] != community_X) & (community_X >= 0)
    if wrong_X.any():
        raise CorruptArtifactError(
            f"{where}: batch {_batch_of(slot_SB, wrong_X)} names a community that its rows are "
            "not in",
            remedy="mine again",
        )


def _check_drawn(plan: BatchPlan, dataset: int, batching: BatchSpec, where: str) -> None:
    """Check which rows are said to be drawn at random, in epochs that are so wholly or not at all.

    In the latter only rows that the epoch before left out may be: they take others' places.
    """
    left_LX = plan.left_out[plan.left_out[:, 1] == dataset]
    for epoch, segments in enumerate(batching.segments()):
        shares = {phase.random_share for _, phase in segments}
        slot_SB = plan.slots_of(dataset, plan.epoch_S == epoch)
        drawn_X = plan.community_SB[slot_SB] == -1
        if shares == {1.0}:
            wrong_X = ~drawn_X
        elif shares == {0.0}:
            before_L = left_LX[left_LX[:, 0] == epoch - 1, 2]
            wrong_X = drawn_X & ~np.isin(plan.row_SB[slot_SB], before_L)
        else:
            continue
        if wrong_X.any():
            raise CorruptArtifactError(
                f"{where}: batch {_batch_of(slot_SB, wrong_X)} "
                f"{'has a community' if shares == {1.0} else 'lacks a community'}",
                expected=f"random_share {shares.pop():g} in epoch {epoch}",
                remedy="mine again",
            )


def _batch_of(slot_SB: npt.NDArray[np.bool_], wrong_X: npt.NDArray[np.bool_]) -> int:
    """Return the batch of the first wrong one of the slots looked at."""
    return int(np.nonzero(slot_SB)[0][wrong_X.argmax()])


def _verify_lineage(upstream: _Upstream, head: dict[str, Any], where: str) -> int:
    """Check every file that a manifest stands on, and what the head says of their artifacts."""
    made = [each for entry in head["datasets"] for each in _lineage(upstream, entry, head, where)]
    found, expected = head["lineage"], lineage_of(made)
    for path in sorted(found.keys() ^ expected.keys()):
        what = "names" if path in found else "lacks"
        raise CorruptArtifactError(f"{where}: lineage {what} {path}", remedy="mine again")
    for artifact in made:
        for name in artifact.files if upstream.hashed else ():
            artifact.path(name)  # raises if the bytes are not the recorded ones
        if found[artifact.address.path] != expected[artifact.address.path]:
            raise CorruptArtifactError(
                f"{where}: {artifact.address.path} was made again since", remedy="mine again"
            )
    return sum(len(files) for files in expected.values())


def _lineage(
    upstream: _Upstream, entry: dict[str, Any], head: dict[str, Any], where: str
) -> list[Artifact]:
    """Follow a dataset's artifacts by their own records, and compare those with the head."""
    name, digest, where = entry["name"], entry["digest"], f"{where}: dataset {entry['name']}"

    def artifact(stage: str, fingerprint: str) -> Artifact:
        return upstream.get(Address(name, stage, fingerprint))

    ranks = artifact("labels" if _is_labelled(entry, head) else "ranks", entry["ranks"])
    vectors = artifact("embeddings", ranks.record["lineage"]["embeddings"])
    parts = [artifact("communities", fingerprint) for fingerprint in entry["communities"]]
    graphs = [artifact("graph", part.record["lineage"]["graph"]) for part in parts]
    earlier = [part.record["lineage"].get("earlier") for part in parts]
    stated = {
        **entry,
        "pairs that were ranked": digest,
        "pairs of its communities": [digest] * len(parts),
        "ranks of its graphs": [entry["ranks"]] * len(parts),
        "p of its graphs": [entry["p"]] * len(parts),
        "m of its graphs": [entry["m"]] * len(parts),
        "earlier ranks": entry.get("earlier", {}).get("ranks"),
        "earlier communities": entry.get("earlier", {}).get("communities", [None] * len(parts)),
    }
    recorded = {
        "pairs that were ranked": ranks.record["lineage"]["pairs"],
        "pairs of its communities": [part.record["lineage"]["pairs"] for part in parts],
        "ranks of its graphs": [each.record["lineage"]["ranks"] for each in graphs],
        "p of its graphs": [each.record["settings"].get("p", entry["p"]) for each in graphs],
        "m of its graphs": [each.record["settings"]["m"] for each in graphs],
        "quality": [part.figures for part in parts],
        "teacher": {
            "weights": vectors.record["lineage"]["weights"],
            **vectors.record["settings"],
        },
        "earlier ranks": ranks.record["lineage"].get("earlier"),
        "earlier communities": earlier,
    }
    same(where, stated, recorded)
    return [artifact("pairs", entry["pairs"]), vectors, ranks, *graphs, *parts]


def _is_labelled(entry: dict[str, Any], head: dict[str, Any]) -> bool:
    """Say whether a dataset is a classification: ranked by labels, without windows of rows."""
    return f"{entry['name']}/labels/{entry['ranks']}" in head["lineage"]


def lineage_of(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Name the artifacts a manifest stands on: store path -> file -> [size, sha256]."""
    return {
        artifact.address.path: {
            name: [entry.size, entry.sha256] for name, entry in sorted(artifact.files.items())
        }
        for artifact in artifacts
    }
