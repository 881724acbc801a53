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

from b3_core.artifacts import Address, Artifact
from b3_core.batches import BatchPlan, plan_batches
from b3_core.bench.machine import machine
from b3_core.communities import Partition, community_sizes
from b3_core.config import BatchSpec, Phase
from b3_core.manifest import SCHEMA, Layout, Manifest, lineage_of, verify
from b3_core.negatives import Negatives
from b3_core.pairs import SCHEMA as PAIRS
from b3_core.pairs import PairTable
from b3_core.progress import Progress, silent
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
    pairs = _pairs(rows)
    upstream = _upstream(artifacts, pairs)
    plan = _plan(pairs, Partition.load(upstream["communities"]), batch_size)
    batch = min(batch, len(plan.row_SB) - 1)
    ours = _ours(artifacts, upstream, plan, pairs, batch=batch, repeats=repeats)
    found = [{"format": "b3", **ours}]
    lines = _lines(ArtifactStore(store), upstream)
    progress(1, 3)
    asked = _Asked(store.rstrip("/"), batch, batch_size, repeats)
    found.append({"format": "datasets", **_datasets(lines, asked)})
    progress(2, 3)
    if mds_python is not None:
        found.append({"format": "mds", **_mds(lines, asked, python=mds_python)})
    progress(3, 3)
    return {"results": found, "rows": rows, "batches": len(plan.row_SB), "machine": machine()}


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


def _upstream(store: ArtifactStore, pairs: PairTable) -> dict[str, Artifact]:
    """Store what a manifest stands on: pairs, and communities drawn at random."""
    size_C = community_sizes(len(pairs), _K)
    label_N = np.repeat(np.arange(len(size_C), dtype=np.int32), size_C)
    label_N = np.random.default_rng(1).permutation(label_N)
    made: dict[str, Any] = {
        "pairs": lambda draft: pairs.save(draft, "train"),
        "communities": lambda draft: Partition(label_N, _K, 0, 0.0).save(draft),
    }
    found = {}
    for stage, save in made.items():
        settings = {"rows": len(pairs)}
        address = Address.of(_DATASET, stage, version=0, settings=settings, inputs={})
        if store.find(address) is None:
            with store.draft(address, lineage={}, settings=settings) as draft:
                save(draft)
        found[stage] = store.get(address)
    return found


def _plan(pairs: PairTable, partition: Partition, batch_size: int) -> BatchPlan:
    return plan_batches(
        [[partition]],
        group_of=[pairs.group_N],
        spec=BatchSpec(batch_size=batch_size, curriculum=(Phase(),)),
        rng=np.random.default_rng(2),
    )


def _ours(
    store: ArtifactStore,
    upstream: Mapping[str, Artifact],
    plan: BatchPlan,
    pairs: PairTable,
    *,
    batch: int,
    repeats: int,
) -> dict[str, Any]:
    head = {
        "schema": SCHEMA,
        "batch_size": plan.row_SB.shape[1],
        "k": _K,
        "batches": len(plan.row_SB),
        "layout": asdict(Layout.of(plan.row_SB.shape[1])),
        "left_out": len(plan.left_out),
        "duplicates": plan.duplicates,
        "negatives": 0,
        "negatives_short": 0,
        "settings": {},
        "variant_of_epoch": [0],
        "datasets": [
            {
                "name": _DATASET,
                "rows": len(pairs),
                "digest": pairs.digest,
                "pairs": upstream["pairs"].fingerprint,
                "communities": [upstream["communities"].fingerprint],
            }
        ],
        "lineage": lineage_of(list(upstream.values())),
    }
    address = _manifest_address(upstream)
    _forget(store, address)
    with _timed() as write, store.draft(address, lineage={}, settings={}) as draft:
        Manifest(head, plan, Negatives.none(plan)).save(draft, [pairs])
    artifact = store.get(address)
    with _timed() as checked:
        verify(artifact)

    def read() -> int:
        reads = []

        class Counting(ArtifactStore):
            def read(self, path: str, start: int, stop: int) -> bytes:
                reads.append(stop - start)
                return super().read(path, start, stop)

        found = ManifestReader(Counting(store.root).get(address))[batch]
        assert (found.row_B == plan.row_SB[batch]).all()
        return len(reads)

    seconds, reads = zip(*(_seconds(read) for _ in range(repeats)), strict=True)
    return {
        "bytes_a_row": round(sum(f.size for f in artifact.files.values()) / len(pairs), 2),
        "write_seconds": write["seconds"],
        **_spread(list(seconds)),
        "copied": False,
        "verify_seconds": checked["seconds"],
        "reads": max(reads),
    }


def _manifest_address(upstream: Mapping[str, Artifact]) -> Address:
    inputs = {stage: artifact.fingerprint for stage, artifact in upstream.items()}
    return Address.of("bench", "manifest", version=SCHEMA, settings={}, inputs=inputs)


def _forget(store: ArtifactStore, address: Address) -> None:
    for path in store.named_files(address.path):
        store.remove(f"{address.path}/{path}")
    store.remove(f"{address.path}/record.json")


def _lines(store: ArtifactStore, upstream: Mapping[str, Artifact]) -> pa.Table:
    """Return the manifest's lines as it stores them, for the others to store."""
    artifact = store.get(_manifest_address(upstream))
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
