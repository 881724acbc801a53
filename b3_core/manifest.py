"""The manifest: which rows meet in which batch, and everything needed to trust it.

Files of a manifest artifact:

``batches-00000.parquet``, ``batches-00001.parquet``, ...
    A line a slot, sorted by (epoch, batch, slot): ``epoch, batch, slot, dataset, row, row_id, key,
    community, negatives``. ``batch`` counts through all epochs; ``row`` is the position in the
    dataset's pairs table, ``row_id`` in its source. ``community`` is -1 where rows were drawn at
    random, and else numbered in the communities that the epoch uses (``variant_of_epoch`` in the
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

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.artifacts import Address
from b3_core.batches import BatchPlan
from b3_core.communities import Partition
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.negatives import Negatives
from b3_core.neighbours import RankTable
from b3_core.pairs import PairTable
from b3_core.store import Artifact, ArtifactStore, Draft

VERSION = 3
SCHEMA = 3

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
        """Names of the datasets, in the order of ``plan.dataset_S``."""
        return [entry["name"] for entry in self.head["datasets"]]

    def save(self, draft: Draft, pairs: Sequence[PairTable]) -> None:
        """Write all files; ``pairs`` are the datasets' tables, in order."""
        layout = Layout(**self.head["layout"])
        taken = pa.concat_tables([table.table.select(["row_id", "key"]) for table in pairs])
        for name, batches in layout.files(len(self.plan.row_SB)):
            pq.write_table(
                self._slots(batches, pairs, taken),
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

    def _slots(
        self, batches: range, pairs: Sequence[PairTable], taken: pa.Table | None = None
    ) -> pa.Table:
        """Return some batches' lines; ``taken`` are all pairs' ids and keys, one after another."""
        if taken is None:
            taken = pa.concat_tables([table.table.select(["row_id", "key"]) for table in pairs])
        part = slice(batches.start, batches.stop)
        row_SB = self.plan.row_SB[part]
        dataset_S, negative_SBH = self.plan.dataset_S[part], self.negatives.row_SBH[part]
        size, each = row_SB.shape[1], negative_SBH.shape[2]
        offset = np.concatenate([[0], np.cumsum([len(table) for table in pairs])])
        named = taken.take(pa.array((row_SB + offset[dataset_S][:, None]).ravel()))
        names = pa.array([table.dataset for table in pairs])
        columns = [
            np.repeat(self.plan.epoch_S[part], size),
            np.repeat(np.arange(batches.start, batches.stop, dtype=np.int32), size),
            np.tile(np.arange(size, dtype=np.int32), len(batches)),
            pa.DictionaryArray.from_arrays(
                pa.array(np.repeat(dataset_S, size).astype(np.int8)), names
            ),
            row_SB.ravel(),
            named["row_id"].combine_chunks(),
            named["key"].combine_chunks(),
            self.plan.community_SB[part].ravel(),
            pa.ListArray.from_arrays(
                np.arange(len(batches) * size + 1, dtype=np.int32) * each, negative_SBH.ravel()
            ),
        ]
        return pa.table(columns, schema=SLOTS)

    @staticmethod
    def read_head(artifact: Artifact) -> dict[str, Any]:
        """Read ``manifest.json`` alone.

        Raises
        ------
        InputError
            The artifact is no manifest, or of another schema version.
        """
        if artifact.address.stage != "manifest":
            raise InputError(
                f"{artifact.uri} is a {artifact.address.stage} artifact",
                expected="a manifest",
                remedy="take the URI from the output of b3 mine",
            )
        head: dict[str, Any] = json.loads(artifact.path("manifest.json").read_bytes())
        if head["schema"] != SCHEMA:
            raise InputError(
                f"manifest {artifact.uri} has schema version {head['schema']}",
                expected=f"version {SCHEMA}",
                remedy="mine again with this version of b3",
            )
        return head

    @classmethod
    def load(cls, artifact: Artifact) -> Self:
        """Read a manifest back; sizes and hashes are checked on the way."""
        head = cls.read_head(artifact)
        table = _read_slots(artifact, head)
        left = pq.read_table(artifact.path("left_out.parquet"))
        size = head["batch_size"]

        def column(name: str) -> Any:
            return table[name].to_numpy().reshape(-1, size)

        dataset = table["dataset"].combine_chunks()
        index = {entry["name"]: i for i, entry in enumerate(head["datasets"])}
        to_index = np.array([index[name] for name in dataset.dictionary.to_pylist()], np.int16)
        plan = BatchPlan(
            row_SB=column("row"),
            dataset_S=to_index[dataset.indices.to_numpy()].reshape(-1, size)[:, 0],
            epoch_S=column("epoch")[:, 0],
            community_SB=column("community"),
            left_out=np.column_stack([left[name].to_numpy() for name in _LEFT_OUT.names]),
            duplicates=head["duplicates"],
        )
        flat = table["negatives"].combine_chunks().values.to_numpy()
        return cls(head, plan, Negatives(flat.reshape(*plan.row_SB.shape, head["negatives"])))


def verify(artifact: Artifact) -> dict[str, Any]:
    """Check a manifest against everything it was made from that the store still holds.

    Every file's size and sha256, of the manifest and of each artifact in its lineage; the
    invariants of the batch plan; row ids and keys against the datasets' pairs.

    Returns
    -------
    dict
        Counts of what was checked.

    Raises
    ------
    CorruptArtifactError
        The first fault, by name.
    """
    manifest = Manifest.load(artifact)
    store = artifact.store
    assert isinstance(store, ArtifactStore)
    files = _verify_lineage(store, manifest.head["lineage"])
    tables = []
    for entry in manifest.head["datasets"]:
        pairs = store.get(Address(entry["name"], "pairs", entry["pairs"]))
        tables.append(PairTable.load(pairs, "train"))
        if tables[-1].digest != entry["digest"]:
            raise CorruptArtifactError(
                f"dataset {entry['name']} has digest {tables[-1].digest[:12]}",
                expected=entry["digest"][:12],
                remedy="mine again",
            )
    try:
        manifest.plan.check([len(table) for table in tables])
        _check_negatives(manifest, store, tables)
    except ValueError as error:
        raise CorruptArtifactError(f"{artifact.uri}: {error}", remedy="mine again") from error
    variant_of = np.array(manifest.head["variant_of_epoch"])
    for d, entry in enumerate(manifest.head["datasets"]):
        for variant, fingerprint in enumerate(entry["communities"]):
            communities = store.get(Address(entry["name"], "communities", fingerprint))
            mine_S = (manifest.plan.dataset_S == d) & (variant_of[manifest.plan.epoch_S] == variant)
            _check_communities(manifest.plan, mine_S, Partition.load(communities).label_N)
    for name, batches in Layout(**manifest.head["layout"]).files(len(manifest.plan.row_SB)):
        if not pq.read_table(artifact.path(name)).equals(manifest._slots(batches, tables)):
            raise CorruptArtifactError(
                f"{artifact.uri}: row ids or keys differ from the datasets' in {name}",
                remedy="mine again",
            )
    return {
        "batches": len(manifest.plan.row_SB),
        "rows": sum(len(table) for table in tables),
        "files": files + len(artifact.files),
    }


def _read_slots(artifact: Artifact, head: dict[str, Any]) -> pa.Table:
    files = Layout(**head["layout"]).files(head["batches"])
    parts = [pq.read_table(artifact.path(name), memory_map=False) for name, _ in files]
    return pa.concat_tables([SLOTS.empty_table(), *parts]).unify_dictionaries()


def _check_negatives(manifest: Manifest, store: ArtifactStore, tables: Sequence[PairTable]) -> None:
    entries = manifest.head["datasets"]
    if not manifest.head["negatives"]:
        return
    ranks = [store.get(Address(entry["name"], "ranks", entry["ranks"])) for entry in entries]
    manifest.negatives.check(
        manifest.plan,
        ranks=[RankTable.load(artifact) for artifact in ranks],
        group_of=[table.group_N for table in tables],
        p_of=[entry["p"] for entry in entries],
        m=entries[0]["m"],
    )


def _check_communities(
    plan: BatchPlan, mine_S: npt.NDArray[np.bool_], label_N: npt.NDArray[np.int32]
) -> None:
    community_SB = plan.community_SB[mine_S]
    wrong_SB = (label_N[plan.row_SB[mine_S]] != community_SB) & (community_SB >= 0)
    wrong_S = np.flatnonzero(wrong_SB.any(axis=1))
    if wrong_S.size:
        batch = np.flatnonzero(mine_S)[wrong_S[0]]
        raise CorruptArtifactError(
            f"batch {batch} names a community that its rows are not in", remedy="mine again"
        )


def _verify_lineage(store: ArtifactStore, lineage: dict[str, Any]) -> int:
    checked = 0
    for path, files in lineage.items():
        upstream = store.get(Address(*path.split("/")))
        for name, (size, sha256) in files.items():
            upstream.path(name)  # raises if the bytes are not the recorded ones
            entry = upstream.files.get(name)
            if entry is None or (entry.size, entry.sha256) != (size, sha256):
                raise CorruptArtifactError(
                    f"{upstream.uri}: {name} was made again since", remedy="mine again"
                )
            checked += 1
    return checked


def lineage_of(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Name the artifacts a manifest stands on: store path -> file -> [size, sha256]."""
    return {
        artifact.address.path: {
            name: [entry.size, entry.sha256] for name, entry in sorted(artifact.files.items())
        }
        for artifact in artifacts
    }
