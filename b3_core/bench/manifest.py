"""A manifest of many rows, beside the same lines in the formats of others.

    random communities of synthetic pairs -> plan -> written to a store by each -> one batch read

Every method has the same lines in the same order. Hugging Face ``datasets`` writes Arrow files
(``save_to_disk``); mosaicml-streaming writes MDS shards, in a process of its own, for it cannot be
installed beside this project's numpy.

Legend: N rows, B rows of a batch.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.artifacts import Address, Artifact, Draft
from b3_core.bench.machine import machine
from b3_core.communities import Partition, community_sizes
from b3_core.config import BatchSpec, DatasetSpec, MiningSpec, Phase
from b3_core.dataset_stage import PairsRef
from b3_core.manifest import verify
from b3_core.mine import Communities, Graph, ManifestOf
from b3_core.pairs import SCHEMA as PAIRS
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
from b3_core.ranking import ranking_of
from b3_core.store import ArtifactStore
from b3_core.stream import ManifestReader

_K = 32
_DATASET = "synthetic"


def bench_manifest(
    *,
    rows: int,
    batch_size: int,
    batch: int,
    store: str,
    mds_python: str | None,
    repeats: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write a manifest and its peers below ``store``, read one batch of each, verify ours.

    Parameters
    ----------
    rows, batch_size
        Of the synthetic dataset; one epoch.
    batch
        The one that is read.
    store
        Folder or S3 URI; what is written there stays.
    mds_python
        An interpreter that has mosaicml-streaming; None leaves that row out.
    repeats
        Times the batch is read, each from scratch.

    Returns
    -------
    dict
        ``results``: for each format ``bytes_a_row``, ``write_seconds``, ``first_batch_seconds`` (to
        open and read the batch: the median, and ``low`` and ``high``), ``copied``, whether that
        needs a local copy, and for ours ``verify_seconds`` and ``reads``, the ranges fetched.
    """
    artifacts = ArtifactStore(store)
    stage = _stage(artifacts, _pairs(rows), batch_size)
    artifacts.discard(stage.address)
    with _timed() as write:
        artifact = stage.run(artifacts)
    ours = _ours(artifact, min(batch, artifact.counts["batches"] - 1), repeats)
    batch = ours.pop("batch")
    found = [{"format": "b3", **ours, "write_seconds": write["seconds"]}]
    progress(1, 3)
    lines = _lines(artifact)
    asked = _Asked(store.rstrip("/"), batch, batch_size, repeats)
    found.append({"format": "datasets", **_datasets(lines, asked)})
    progress(2, 3)
    if mds_python is not None:
        found.append({"format": "mds", **_mds(lines, asked, python=mds_python)})
    progress(3, 3)
    return {
        "results": found,
        "rows": rows,
        "batches": artifact.counts["batches"],
        "machine": machine(),
    }


@dataclass(frozen=True)
class _Asked:
    """What a peer is to do: where to write, and which batch to read how often."""

    store: str
    batch: int
    batch_size: int
    repeats: int


def _pairs(rows: int) -> PairTable:
    rng = np.random.default_rng(0)
    keys = rng.bytes(16 * rows).hex()
    columns = [
        np.arange(rows, dtype=np.int64),
        pa.array([keys[32 * row : 32 * row + 32] for row in range(rows)]),
        pa.array([f"query {row}" for row in range(rows)]),
        pa.array([f"positive {row}" for row in range(rows)]),
        np.arange(rows, dtype=np.int32),
    ]
    return PairTable(_DATASET, pa.table(columns, schema=PAIRS))


def _stage(store: ArtifactStore, pairs: PairTable, batch_size: int) -> ManifestOf:
    """Store what a manifest stands on: pairs, communities drawn at random, the rest in name."""
    rows = len(pairs)
    spec = DatasetSpec(name=_DATASET, uri=_DATASET, query="query", positive="positive")
    address = Address.of(_DATASET, "pairs", version=0, settings={"rows": rows}, inputs={})
    vectors = Address.of(_DATASET, "embeddings", version=0, settings={}, inputs={"rows": str(rows)})
    mining = MiningSpec(k=_K, partitioner="random", swap_rounds=0, evenness=0.0)
    ref = PairsRef(spec, address, pairs.digest, "", rows, pairs.places)
    ranks = ranking_of(ref, vectors, mining)
    graph = Graph(ref, ranks, mining)
    part = Communities(ref, graph, mining, 0)
    size_C = community_sizes(rows, _K)
    label_N = np.repeat(np.arange(len(size_C), dtype=np.int32), size_C)
    label_N = np.random.default_rng(1).permutation(label_N)

    def named(draft: Draft) -> None:
        draft.write_json("none.json", {})

    made: list[tuple[Address, Mapping[str, str], Mapping[str, Any], Callable[[Draft], None]]] = [
        (address, {}, {}, lambda draft: pairs.save(draft, "train")),
        (vectors, {"weights": "none", "pairs": pairs.digest}, {}, named),
        (ranks.address, ranks.inputs, ranks.settings, named),
        (graph.address, graph.inputs, graph.settings, named),
        (part.address, part.inputs, part.settings, Partition(label_N, _K, 0, 0.0).save),
    ]
    for where, inputs, settings, save in made:
        if store.find(where) is None:
            with store.draft(where, lineage=inputs, settings=settings) as draft:
                save(draft)
    batching = BatchSpec(batch_size=batch_size, curriculum=(Phase(),))
    return ManifestOf("bench", ((part,),), mining, batching, 0)


def _ours(artifact: Artifact, batch: int, repeats: int) -> dict[str, Any]:
    root = ArtifactStore(artifact.uri.removesuffix(artifact.address.path)).root
    with _timed() as checked:
        verify(artifact)

    def read() -> int:
        reads = []

        class Counting(ArtifactStore):
            def read(self, path: str, start: int, stop: int) -> bytes:
                reads.append(stop - start)
                return super().read(path, start, stop)

        assert ManifestReader(Counting(root).get(artifact.address))[batch].batch == batch
        return len(reads)

    seconds, reads = zip(*(_seconds(read) for _ in range(repeats)), strict=True)
    return {
        "batch": batch,
        "bytes_a_row": round(
            sum(f.size for f in artifact.files.values()) / artifact.counts["rows"], 2
        ),
        "write_seconds": 0.0,
        **_spread(list(seconds)),
        "copied": False,
        "verify_seconds": checked["seconds"],
        "reads": max(reads),
    }


def _lines(artifact: Artifact) -> pa.Table:
    """Return the manifest's lines as it stores them, for the others to store."""
    names = sorted(name for name in artifact.files if name.startswith("batches-"))
    lines = pa.concat_tables([pq.read_table(artifact.path(name)) for name in names])
    place = lines.column_names.index("dataset")
    return lines.set_column(place, "dataset", lines["dataset"].cast(pa.string()))


def _datasets(lines: pa.Table, asked: _Asked) -> dict[str, Any]:
    """Write with ``Dataset.save_to_disk``; a remote dataset is copied to be opened."""
    import datasets  # noqa: PLC0415 - a second to import

    datasets.disable_progress_bars()
    target = f"{asked.store}/bench-datasets"
    _clear(target)
    with _timed() as write:
        datasets.Dataset(lines).save_to_disk(target)

    def read() -> None:
        first = asked.batch * asked.batch_size
        found = datasets.load_from_disk(target)[first : first + asked.batch_size]
        assert found["batch"] == [asked.batch] * asked.batch_size

    seconds = [_seconds(read)[0] for _ in range(asked.repeats)]
    return {
        "bytes_a_row": round(_size(target) / len(lines), 2),
        "write_seconds": write["seconds"],
        **_spread(seconds),
        "copied": "://" in asked.store,
    }


def _mds(lines: pa.Table, asked: _Asked, *, python: str) -> dict[str, Any]:
    """Have another interpreter write and read MDS shards (``b3_core/bench/mds.py``)."""
    target = f"{asked.store}/bench-mds"
    _clear(target)
    with tempfile.TemporaryDirectory(prefix="b3-mds-") as folder:
        pq.write_table(lines, Path(folder, "lines.parquet"))
        order = json.dumps({**asdict(asked), "folder": folder, "target": target})
        script = Path(__file__).with_name("mds.py")
        done = subprocess.run(
            [python, "-P", str(script), order], capture_output=True, text=True, check=False
        )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["nothing said"])[-1]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "bytes_a_row": round(_size(target) / len(lines), 2),
        "write_seconds": found["write_seconds"],
        **_spread(found["read_seconds"]),
        "copied": "://" in asked.store,
    }


def _clear(target: str) -> None:
    files, path = fsspec.core.url_to_fs(target)
    if files.exists(path):
        files.rm(path, recursive=True)


def _size(target: str) -> int:
    files, path = fsspec.core.url_to_fs(target)
    files.invalidate_cache()
    return int(sum(info["size"] for info in files.find(path, detail=True).values()))


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    took: dict[str, float] = {}
    started = time.perf_counter()
    yield took
    took["seconds"] = round(time.perf_counter() - started, 2)


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _spread(seconds: list[float]) -> dict[str, Any]:
    return {
        "first_batch_seconds": round(float(np.median(seconds)), 3),
        "low": round(min(seconds), 3),
        "high": round(max(seconds), 3),
    }
