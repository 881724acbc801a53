"""A manifest opened for training: what any trainer needs of it, whichever it is.

    URI -> manifest, checked against the pairs of its store -> rows, slots, batch samplers

Texts stay on disk: each table of pairs is laid out once per machine as an Arrow file, which all
processes map into memory and read where a batch needs it. In memory are the plan, the hard
negatives and the groups: some 30 bytes a slot and 4 more a hard negative, 4 a row.

Legend: S batches, B rows of a batch, X slots of all batches (X = S B), N rows of all tables,
T tables.
"""

import fcntl
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from b3_core.artifacts import Address, Artifact
from b3_core.batches import BatchPlan
from b3_core.copies import cache_folder, hold
from b3_core.errors import CorruptArtifactError, InputError, reason
from b3_core.inputs import ALL, MEDIUM, NO_MEDIUM, PACKED, Seeing, Shelf, Shelves
from b3_core.manifest import Manifest
from b3_core.pairs import GIVEN_MEDIA, MEDIA, SCHEMA, RowGroups, limits_read, open_rows
from b3_core.sampler import PlanSampler, TrainerSampler
from b3_core.slots import Slots, slot_dataset
from b3_core.store import ArtifactStore, open_artifact

if TYPE_CHECKING:
    from datasets import Dataset

_PAIRS = "train.parquet"
_COLUMNS = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("row_id", "query", "positive")),
        pa.field("negative", pa.string()),
        *MEDIA,
        *GIVEN_MEDIA,
    ]
)
_LAYOUT = 4  # of the Arrow file
_GROUP_ROWS = 1000  # of the Arrow file: rows are looked up one by one, so small is good


@dataclass(frozen=True, eq=False)
class MinedBatches:
    """The batches of a manifest, with the texts of their rows.

    ::

        mined = MinedBatches.open("s3://bucket/store/demo/manifest/0123456789abcdef0123")
        loader = DataLoader(mined.slots, batch_sampler=mined.sampler(), collate_fn=...)

    ``docs/trainers.md`` has a whole training for each of three trainers.
    """

    uri: str
    manifest: Manifest
    lengths: tuple[int, ...]
    """Rows of each table, T, in the order of ``datasets``."""
    places: Slots
    """Rows and groups by slot, as numbers."""
    rows: "Dataset"
    """Every row of every table: ``row_id``, ``query``, ``positive``, ``negative``, N, on disk.

    The last is blank where rows came without a hard negative. ``query_medium``,
    ``positive_medium`` and ``negative_medium`` say where an image or video is
    (``b3_core.inputs.MEDIUM``).
    """
    shelves: Shelves | None = None
    """Where images and videos are; None where no table has any."""

    @classmethod
    def open(
        cls, uri: str, *, media: Mapping[str, str] | None = None, seeing: Seeing = ALL
    ) -> Self:
        """Open a manifest by its URI, as ``b3 mine`` prints it, local or ``s3://``.

        The manifest and its tables of pairs are checked by their sha256, and the plan against the
        rows. From a remote store each file is fetched once per machine, into
        :func:`b3_core.copies.cache_folder`, where the Arrow files lie too; it is read from there
        then. Several processes may open one manifest at once.

        Parameters
        ----------
        media
            Where the images and videos of each dataset are now, if rows name them by path: dataset
            -> its ``media.root``. What came as bytes is in the store.
        seeing
            How large images are at most, and how many frames a video has.

        Raises
        ------
        InputError
            There is no whole manifest, or its store lacks the pairs that it was mined from; or
            ``media`` names a dataset that it is not of.
        CorruptArtifactError
            What is stored is not what was written, or the plan is not one of these rows.
        """
        from datasets import concatenate_datasets  # noqa: PLC0415 - a second to import

        artifact = open_artifact(uri)
        manifest = Manifest.load(artifact)
        pairs = _pairs_of(artifact, manifest)
        media, known = media or {}, [each.address.dataset for each in pairs]
        if unknown := sorted(set(media) - set(known)):
            raise InputError(
                f"media names dataset {unknown[0]}, which manifest {artifact.uri} is not of",
                expected=f"some of {', '.join(known)}",
            )
        files = [_arrow_file(each) for each in pairs]
        tables = [_groups_of(each) for each in pairs]
        manifest.check(tables, where=artifact.uri)
        lengths = tuple(map(len, tables))
        return cls(
            artifact.uri,
            manifest,
            lengths,
            Slots.of_pairs(manifest.plan, tables, manifest.negatives),
            concatenate_datasets([_mapped(file) for file in files]),
            _shelves(pairs, media, lengths, seeing),
        )

    @property
    def plan(self) -> BatchPlan:
        """Which rows meet in which batch."""
        return self.manifest.plan

    @property
    def datasets(self) -> list[str]:
        """Names of the tables' datasets, T."""
        return self.manifest.datasets

    @property
    def batch_size(self) -> int:
        """Rows of a batch over all devices, B."""
        return int(self.plan.row_SB.shape[1])

    @property
    def batches(self) -> int:
        """Batches of all epochs, S: the steps of a training."""
        return len(self.plan.row_SB)

    @property
    def epochs(self) -> int:
        """How many epochs there are."""
        return len(self.manifest.head["variant_of_epoch"])

    @property
    def row_ids(self) -> list[npt.NDArray[np.int64]]:
        """Positions in the source of each table's rows: int64, T arrays.

        A source is the files of a dataset in sorted order, and their rows. Held-out rows are in no
        table.
        """
        row_id_N = self.rows.data.column("row_id").to_numpy()
        return np.split(row_id_N, np.cumsum(self.lengths)[:-1])

    @property
    def slots(self) -> "Dataset":
        """An item a slot, X: ``query``, ``positive``, negatives, and groups as ``label``.

        Items are looked up when they are asked for (:func:`b3_core.slots.slot_dataset`). Where a
        table has images or videos, inputs are dicts: ``image`` (a picture, or a list of frames),
        ``text``, or both.
        """
        return self.slots_over(self.rows)

    def slots_over(self, rows: "Dataset") -> "Dataset":
        """Return ``slots`` with what another dataset has in the place of the texts, such as images.

        Parameters
        ----------
        rows
            ``query`` and ``positive`` of every row of every table, N, in the order of ``rows``; and
            ``negative`` if a table's rows came with one.

        Raises
        ------
        InputError
            It has another number of rows, or lacks a column.
        """
        if len(rows) != sum(self.lengths):
            raise InputError(
                f"a dataset of {len(rows)} rows for the slots of {self.uri}",
                expected=f"{sum(self.lengths)} rows, in the order of MinedBatches.rows",
                remedy="select them from their source by MinedBatches.row_ids",
            )
        sides = ["query", "positive"]
        if self.places.given_N is not None:
            sides.append("negative")
        if lacking := [side for side in sides if side not in rows.column_names]:
            raise InputError(
                f"no column {' and '.join(lacking)} in a dataset for slots",
                expected=" and ".join(sides),
                remedy="use its rename_column",
            )
        if self.shelves is None or rows is not self.rows:
            return slot_dataset(self.places, rows.select_columns(sides))
        sides += [f"{side}_medium" for side in sides]
        return slot_dataset(self.places, rows.select_columns(sides), shelves=self.shelves)

    def batch_sampler(self, *, processes: int = 1) -> TrainerSampler:
        """Return what sentence-transformers' ``batch_sampler=`` takes, for a dataset of slots.

        The whole plan is one of the trainer's epochs: set ``num_train_epochs=1``.

        Parameters
        ----------
        processes
            As :class:`b3_core.sampler.PlanSampler` has it.
        """
        return TrainerSampler(self.plan, processes=processes)

    def sampler(
        self,
        *,
        processes: int = 1,
        one_pass: bool = False,
        items: Literal["slots", "rows"] = "slots",
    ) -> PlanSampler:
        """Return the batch sampler of the plan, for a ``DataLoader``.

        Parameters
        ----------
        processes, one_pass
            As :class:`b3_core.sampler.PlanSampler` has them.
        items
            What it yields: numbers of slots, or of ``rows``.

        Raises
        ------
        InputError
            The batch size is no multiple of ``processes``, or ``items`` is neither.
        """
        if items == "slots":
            return PlanSampler.of_slots(self.plan, processes=processes, one_pass=one_pass)
        if items == "rows":
            return PlanSampler.of_rows(
                self.plan, self.lengths, processes=processes, one_pass=one_pass
            )
        raise InputError(f"no sampler of {items}", expected="slots or rows")


def _pairs_of(artifact: Artifact, manifest: Manifest) -> list[Artifact]:
    """Find the tables that a manifest was mined from, in its own store."""
    store = artifact.store
    assert isinstance(store, ArtifactStore)
    found = []
    for entry in manifest.head["datasets"]:
        address = Address(entry["name"], "pairs", entry["pairs"])
        pairs = store.find(address)
        if pairs is None:
            raise InputError(
                f"{artifact.uri} was mined from {address.path}, which is not in {store.root}",
                expected="a manifest in the store that it was mined into",
                remedy="open it there, or copy that folder beside it",
            )
        found.append(pairs)
    return found


def _groups_of(pairs: Artifact) -> RowGroups:
    try:
        return RowGroups.read(pairs.path(_PAIRS))
    except ValueError as error:
        raise _unreadable(pairs, error) from error


def _unreadable(pairs: Artifact, error: ValueError) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{pairs.uri}: {_PAIRS} cannot be read: {reason(error)}",
        remedy="delete that folder and mine again",
    )


def _arrow_file(pairs: Artifact) -> Path:
    """Return the file that the rows of a table are mapped from; the first process writes it.

    Not ``Dataset.from_parquet``: it takes a path for a pattern, names its copy by path and time
    instead of content, and draws bars.
    """
    if _PAIRS not in pairs.files:
        pairs.path(_PAIRS)  # raises, and says so
    file = cache_folder() / f"{pairs.files[_PAIRS].sha256}-{_LAYOUT}.arrow"
    while not hold(file):  # other processes of a loader map it anew, by its path
        _make_arrow_file(pairs, file)
    return file


def _make_arrow_file(pairs: Artifact, file: Path) -> None:
    with _alone(file.with_suffix(".lock")):  # of eight processes, one fetches and writes
        if not file.exists():
            partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
            try:
                _write_arrow(pairs.path(_PAIRS), partial)
                partial.replace(file)
            except ValueError as error:
                raise _unreadable(pairs, error) from error
            finally:
                partial.unlink(missing_ok=True)


def _write_arrow(parquet: Path, target: Path) -> None:
    with (
        open_rows(parquet) as source,
        pa.OSFile(str(target), "wb") as sink,
        pa.ipc.new_stream(sink, _COLUMNS) as out,
    ):
        there = [name for name in _COLUMNS.names if name in source.schema_arrow.names]
        for part in source.iter_batches(_GROUP_ROWS, columns=there):
            columns = [
                part[name] if name in there else _blank(name, len(part)) for name in _COLUMNS.names
            ]
            out.write_batch(pa.record_batch(columns, schema=_COLUMNS))


def _blank(name: str, rows: int) -> pa.Array:
    if _COLUMNS.field(name).type == MEDIUM:
        return pa.array([NO_MEDIUM] * rows, MEDIUM)
    return pa.repeat("", rows)


def _shelves(
    pairs: Sequence[Artifact], media: Mapping[str, str], lengths: Sequence[int], seeing: Seeing
) -> Shelves | None:
    """Say where the media of each table are, by what its artifact holds and the caller says."""
    shelf_T = []
    for each in pairs:
        with open_rows(each.path(_PAIRS)) as rows:
            has_media = "query_medium" in rows.schema_arrow.names
        packed = each.path(PACKED) if PACKED in each.files else None
        if packed is not None:
            hold(packed)
        root = media.get(each.address.dataset)
        shelf_T.append(Shelf(root, packed, limits_read(each)) if has_media else None)
    return Shelves(shelf_T, lengths, seeing) if any(shelf_T) else None


def _mapped(file: Path) -> "Dataset":
    from datasets import Dataset  # noqa: PLC0415 - a second to import

    return Dataset.from_file(str(file))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time in; a process that dies lets the next one in."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
