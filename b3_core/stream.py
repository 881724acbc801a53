"""A manifest read batch by batch from where it is stored.

    record, head  ->  which file and row group a batch is in  ->  the file's footer, the row group

Nothing is copied, and what is read does not grow with the manifest: files are of about half a
million slots and row groups of sixteen thousand (:class:`b3_core.manifest.Layout`). Pages are
checked against their CRC-32; the files' sha256 are what ``b3 verify`` checks.

Legend: B rows of a batch, H negatives a row.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.artifacts import Artifact
from b3_core.errors import CorruptArtifactError, InputError, RefusedError, UnreachableError
from b3_core.manifest import SLOTS, Layout, Manifest
from b3_core.store import open_artifact


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a manifest."""

    batch: int
    """Its number, counted through all epochs."""
    epoch: int
    dataset_B: npt.NDArray[np.str_]
    """Names; one, but where batches are drawn across datasets."""
    row_B: npt.NDArray[np.int32]
    """Positions in the dataset's pairs table."""
    row_id_B: npt.NDArray[np.int64]
    """Positions in the dataset's source."""
    key_B: tuple[str, ...]
    """What the rows hold, hashed: hex, 128 bits each."""
    community_B: npt.NDArray[np.int32]
    """-1 where rows were drawn at random."""
    negative_BH: npt.NDArray[np.int32]
    """Hard negatives of each row, in the same table; -1 where there was none."""

    @property
    def dataset(self) -> str:
        """The one dataset that all rows are of.

        Raises
        ------
        InputError
            They are of several.
        """
        if (self.dataset_B != self.dataset_B[0]).any():
            raise InputError(
                f"batch {self.batch} has rows of several datasets",
                expected="batches of one dataset each",
                remedy="read dataset_B, which names each row's",
            )
        return str(self.dataset_B[0])


class ManifestReader:
    """Batches of a manifest, in order or by number, from a local folder or over S3.

    A training process that starts anew at step ``n`` reads what it needs for that step alone::

        reader = ManifestReader.open("s3://bucket/store/demo/manifest/0123456789abcdef0123")
        for batch in reader.batches(start=n): ...

    Processes of a distributed job may all read one manifest, each with a reader of its own.

    Parameters
    ----------
    artifact
        A whole manifest; ``open`` finds it by its URI.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.head: dict[str, Any] = Manifest.read_head(artifact)
        self._artifact = artifact
        self._layout = Layout(**self.head["layout"])
        self._file: tuple[str, pq.ParquetFile] | None = None
        self._group: tuple[int, pa.Table] | None = None
        self._lock = threading.Lock()
        self._reading = threading.Lock()  # Arrow's file object takes one reader at a time

    @classmethod
    def open(cls, uri: str) -> Self:
        """Open the manifest at a URI, as ``b3 mine`` prints it.

        Raises
        ------
        InputError
            There is no whole manifest, or one of another schema version.
        """
        return cls(open_artifact(uri))

    def __len__(self) -> int:
        """Count the batches of all epochs."""
        return int(self.head["batches"])

    def __getitem__(self, batch: int) -> Batch:
        """Return one batch; its row group stays in memory, for the next is likely to be in it.

        Raises
        ------
        InputError
            There is no such batch.
        CorruptArtifactError
            What is stored there is not what was written.
        """
        if not 0 <= batch < len(self):
            raise InputError(
                f"no batch {batch} in {self._artifact.uri}", expected=f"0 to {len(self) - 1}"
            )
        first = batch - batch % self._layout.group_batches
        with self._lock:
            if self._group is None or self._group[0] != first:
                self._group = (first, self._read_group(first))
            _, table = self._group
        size = self.head["batch_size"]
        return self._batch(batch, table.slice((batch - first) * size, size))

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield batches [start, stop); while one row group is used, the next is fetched.

        Raises
        ------
        InputError, CorruptArtifactError
            As for one batch.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        each, size = self._layout.group_batches, self.head["batch_size"]
        firsts = range(start - start % each, stop, each)
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[pa.Table] | None = None
            for first in firsts:
                table = self._read_group(first) if ahead is None else ahead.result()
                ahead = pool.submit(self._read_group, first + each) if first + each < stop else None
                for batch in range(max(first, start), min(first + each, stop)):
                    yield self._batch(batch, table.slice((batch - first) * size, size))

    def _read_group(self, first: int) -> pa.Table:
        """Read the row group that begins with a batch."""
        with self._reading:
            return self._read_alone(first)

    def _read_alone(self, first: int) -> pa.Table:
        name = self._layout.name(first)
        try:
            file = self._file  # others may read another one meanwhile
            if file is None or file[0] != name:
                opened = pq.ParquetFile(
                    self._artifact.open(name), pre_buffer=True, page_checksum_verification=True
                )
                self._file = file = (name, opened)
            number = first % self._layout.file_batches // self._layout.group_batches
            table = file[1].read_row_group(number)
        except (RefusedError, UnreachableError):
            raise  # nothing is known of the file
        except (KeyError, OSError, pa.ArrowException, IndexError) as error:
            raise CorruptArtifactError(
                f"{self._artifact.uri}: {name} cannot be read at batch {first}: {error}",
                remedy="b3 verify says what is wrong with it",
            ) from error
        expected = min(self._layout.group_batches, len(self) - first) * self.head["batch_size"]
        if not table.schema.equals(SLOTS) or len(table) != expected:
            raise CorruptArtifactError(
                f"{self._artifact.uri}: {name} holds {len(table)} slots from batch {first} on",
                expected=f"{expected} with the columns of schema version {self.head['schema']}",
                remedy="mine again",
            )
        return table.combine_chunks()

    def _batch(self, batch: int, table: pa.Table) -> Batch:
        numbers = table["batch"].to_numpy()
        if not (numbers == batch).all():
            raise CorruptArtifactError(
                f"{self._artifact.uri}: where batch {batch} should be is batch {numbers[0]}",
                remedy="mine again",
            )
        dataset = pa.concat_arrays(table["dataset"].chunks)
        flat = pa.concat_arrays([chunk.flatten() for chunk in table["negatives"].chunks])
        return Batch(
            batch=batch,
            epoch=table["epoch"][0].as_py(),
            dataset_B=np.array(dataset.dictionary.to_pylist())[dataset.indices.to_numpy()],
            row_B=table["row"].to_numpy(),
            row_id_B=table["row_id"].to_numpy(),
            key_B=tuple(table["key"].to_pylist()),
            community_B=table["community"].to_numpy(),
            negative_BH=flat.to_numpy().reshape(len(table), self.head["negatives"]),
        )
