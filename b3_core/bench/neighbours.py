"""Our ranking beside the searches people use: seconds, exactness, memory.

    clustered_pairs -> every method in turn, `repeats` times over -> seconds, share of matmul rate
                    -> fp64 products on a sample of rows          -> recall, ids_exact
                    -> every method once, in a process of its own -> peak_mb

The methods take turns (A B C A B C), so that a machine that slows down slows them all. A first,
small run of each compiles and imports what it needs; it is not timed. Where torch sees a GPU, our
exact search, faiss's if it is a build for GPUs, and semantic_search are on it; vectors come from
the host's memory, and ids go back there.

Legend: N rows, D width of a vector, K ranks, S sampled rows.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core import neighbours
from b3_core.bench.machine import machine
from b3_core.matrix_units import MatrixUnits
from b3_core.progress import Progress, silent
from b3_core.search import Method
from b3_core.usage import gpu_peak, has_amx, peak_mb

_SAMPLE = 2000
_WARM_UP = 600  # rows
TIE = 50  # one positive in so many repeats the one before it

_Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Method:
    run: Callable[[_Vectors, _Vectors, int], Any]
    """(query_ND, positive_ND, K) -> whatever the library returns."""
    ids: Callable[[Any, npt.NDArray[np.intp]], npt.NDArray[np.int64]]
    """(that, row_S) -> the rows it found for some queries, (S, K)."""
    own: bool
    """A query may find the positive of its own row; ours leaves it out."""


def bench_neighbours(
    *,
    rows: int,
    dim: int,
    k: int,
    threads: int = 2,
    seed: int = 0,
    repeats: int = 3,
    methods: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Rank ``rows`` seeded pairs by every method and measure it.

    Parameters
    ----------
    rows, dim
        N queries against N positives of D numbers: see :func:`clustered_pairs`.
    k
        Ranks wanted; below N.
    threads
        Of every method alike; what was set before is set again.
    repeats
        Timed runs of every method.
    methods
        Some of :data:`METHODS`; all by default.
    progress
        Told how many runs of all are done.

    Returns
    -------
    dict
        The arguments; ``machine``; and ``results``, one a method: ``method``, ``seconds`` (median)
        with ``seconds_low`` and ``seconds_high``; of a sample of rows, ``recall``, the share of
        the oracle's ids that were found, and ``ids_exact``, the share of rows whose ids equal the
        oracle's one by one, ties by smaller row; ``peak_mb``, the resident memory at most, and
        ``peak_above_mb``, without what interpreter and vectors take before the run, and
        ``gpu_peak_mb``, that of torch's tensors on a GPU; and ``share_of_matmul_rate``: 2 N N D /
        seconds, the rate of a search that scores everything, over ``machine.matmul_gflops``, the
        rate of a bare product in the same minutes: fp32 on the CPU, of which a search in bf16 may
        have more than 1, fp16 on a GPU.

    Raises
    ------
    ValueError
        A size is not positive, ``k`` is not below ``rows``, or a method is unknown.
    """
    names = list(METHODS if methods is None else methods)
    unknown = [name for name in names if name not in METHODS]
    if min(rows, dim, k, threads, repeats) < 1 or k >= rows or unknown:
        raise ValueError(f"cannot bench {rows} rows, {dim} wide, to rank {k}; unknown: {unknown}")
    vectors = clustered_pairs(rows, dim=dim, seed=seed)
    row_S = np.sort(np.random.default_rng(seed).permutation(rows)[:_SAMPLE])
    timed, runs = repeats * len(names), (repeats + 1) * len(names)
    with _threads(threads):
        took, ids = _timed(
            names,
            vectors,
            k=k,
            repeats=repeats,
            row_S=row_S,
            progress=lambda done, _: progress(done, runs),
        )
        best = {own: oracle(*vectors, row_S=row_S, k=k, own=own) for own in (False, True)}
    peaks = _peaks(
        names,
        vectors,
        k=k,
        threads=threads,
        progress=lambda done, _: progress(timed + done, runs),
    )
    gflops = 1 / float(np.median(took["matmul"]))
    results = []
    for name in names:
        seconds = float(np.median(took[name]))
        results.append(
            {
                "method": name,
                "seconds": seconds,
                "seconds_low": min(took[name]),
                "seconds_high": max(took[name]),
                **_accuracy(ids[name], best[METHODS[name].own]),
                **peaks[name],
                "share_of_matmul_rate": 2e-9 * rows * rows * dim / seconds / gflops,
            }
        )
    asked = {"rows": rows, "dim": dim, "k": k, "threads": threads, "seed": seed, "repeats": repeats}
    return {**asked, "machine": {**machine(), "matmul_gflops": gflops}, "results": results}


def clustered_pairs(rows: int, *, dim: int, seed: int) -> tuple[_Vectors, _Vectors]:
    """Draw pairs that lie as embeddings do: around centres, most of their length in few directions.

    Returns
    -------
    ndarray, ndarray of shape (N, D), float32
        Queries and positives: unit vectors of float16 values, as teachers' vectors are stored. One
        positive in 50 repeats the one before it, so that there are ties of every query.
    """
    rng = np.random.default_rng(seed)
    scale_D = (1 / np.sqrt(1 + np.arange(dim) / 16)).astype(np.float32)
    normal: Any = partial(rng.standard_normal, dtype=np.float32)
    centre_CD = normal((rows // 200 + 1, dim))
    query_ND = np.empty((rows, dim), np.float32)
    positive_ND = np.empty_like(query_ND)
    for start in range(0, rows, 4096):
        stop = min(start + 4096, rows)
        part = (stop - start, dim)
        centre = centre_CD[rng.integers(0, len(centre_CD), stop - start)]
        query = (centre + normal(part)) * scale_D
        query_ND[start:stop] = _stored(query)
        positive_ND[start:stop] = _stored(query + normal(part) * scale_D)
    positive_ND[1::TIE] = positive_ND[: len(positive_ND[1::TIE]) * TIE : TIE]
    return query_ND, positive_ND


def oracle(
    query_ND: _Vectors,
    positive_ND: _Vectors,
    *,
    row_S: npt.NDArray[np.intp],
    k: int,
    own: bool,
) -> npt.NDArray[np.int64]:
    """Rank in the plainest way: fp64 products, best first, ties by smaller row.

    Parameters
    ----------
    row_S
        The queries that are ranked.
    own
        Whether a query may find the positive of its own row.

    Returns
    -------
    ndarray of shape (S, K)
        Rows of the best K positives.
    """
    positive_DN = positive_ND.astype(np.float64).T
    best_SK = np.empty((len(row_S), k), np.int64)
    for start in range(0, len(row_S), 100):
        block_B = row_S[start : start + 100]
        score_BN = query_ND[block_B].astype(np.float64) @ positive_DN
        if not own:
            score_BN[np.arange(len(block_B)), block_B] = -np.inf
        least_B = -np.partition(-score_BN, k - 1, axis=1)[:, k - 1]
        for b, score_N in enumerate(score_BN):
            row_C = np.flatnonzero(score_N >= least_B[b])  # ascending, and the sort is stable
            best_SK[start + b] = row_C[np.argsort(-score_N[row_C], kind="stable")[:k]]
    return best_SK


def _ours(method: Method) -> _Method:
    def run(query_ND: _Vectors, positive_ND: _Vectors, k: int) -> Any:
        alone_N = np.arange(len(query_ND), dtype=np.int32)
        return neighbours.rank(query_ND, positive_ND, group_N=alone_N, width=k, method=method)

    return _Method(run, lambda table, row_S: table.neighbour_NM[row_S].astype(np.int64), own=False)


def _faiss_knn(query_ND: _Vectors, positive_ND: _Vectors, k: int) -> Any:
    import faiss  # noqa: PLC0415 - an extra

    inner = faiss.METRIC_INNER_PRODUCT
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        return faiss.knn_gpu(faiss.StandardGpuResources(), query_ND, positive_ND, k, metric=inner)
    return faiss.knn(query_ND, positive_ND, k, metric=inner)


def _semantic_search(query_ND: _Vectors, positive_ND: _Vectors, k: int) -> Any:
    import torch  # noqa: PLC0415 - seconds to import
    from sentence_transformers import util  # noqa: PLC0415 - likewise

    query, positive = (torch.from_numpy(each).to(device()) for each in (query_ND, positive_ND))
    return util.semantic_search(query, positive, top_k=k)  # its chunks, its cosine


def _hit_ids(hits: Any, row_S: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    return np.array([[hit["corpus_id"] for hit in hits[row]] for row in row_S], np.int64)


METHODS: dict[str, _Method] = {
    "b3 exact": _ours("exact"),
    "faiss.knn": _Method(_faiss_knn, lambda found, row_S: found[1][row_S], own=True),
    "semantic_search": _Method(_semantic_search, _hit_ids, own=True),
    "b3 ivf": _ours("ivf"),
    "b3 hnsw": _ours("hnsw"),
}


def _timed(
    names: list[str],
    vectors: tuple[_Vectors, _Vectors],
    *,
    k: int,
    repeats: int,
    row_S: npt.NDArray[np.intp],
    progress: Progress,
) -> tuple[dict[str, list[float]], dict[str, npt.NDArray[np.int64]]]:
    """Run in turns: seconds of each run, and the ids of each method's last; matmul per GFLOP."""
    took: dict[str, list[float]] = {name: [] for name in ["matmul", *names]}
    ids = {}
    few_ND, those_ND = (vector_ND[:_WARM_UP] for vector_ND in vectors)
    for name in names:
        METHODS[name].run(few_ND, those_ND, min(k, len(few_ND) - 1))
    if has_amx():  # where so few rows do not go
        MatrixUnits(those_ND, memory_mb=1).propose(few_ND, 2, np.arange(len(few_ND)))
    _product_seconds(vectors[0].shape[1])
    for repeat in range(repeats):
        for at, name in enumerate(names):
            took["matmul"].append(_product_seconds(vectors[0].shape[1]))
            start = time.perf_counter()
            found = METHODS[name].run(*vectors, k)
            took[name].append(time.perf_counter() - start)
            ids[name] = METHODS[name].ids(found, row_S)
            del found  # hits are millions of dicts: none may lie around while the next one runs
            progress(repeat * len(names) + at + 1, repeats * len(names))
    return took, ids


def _product_seconds(width: int) -> float:
    """Time a bare product of torch's, shaped like one block of the search: seconds a GFLOP."""
    import torch  # noqa: PLC0415 - seconds to import

    on_gpu = device() == "cuda"
    kind = {"device": device(), "dtype": torch.float16 if on_gpu else torch.float32}
    wide, times = (65_536, 10) if on_gpu else (8192, 1)  # one alone is over before a GPU has begun
    left, right = (torch.randn(shape, **kind) for shape in ((4096, width), (width, wide)))
    out = torch.zeros((4096, wide), **kind)
    _finish()
    start = time.perf_counter()
    for _ in range(times):
        torch.mm(left, right, out=out)
    _finish()
    return (time.perf_counter() - start) / (2e-9 * 4096 * wide * width * times)


def device() -> str:
    """Return where torch puts what is compared: the GPU, if it sees one."""
    import torch  # noqa: PLC0415 - seconds to import

    return "cuda" if torch.cuda.is_available() else "cpu"


def _finish() -> None:
    """Wait for a GPU to have done what it was given."""
    import torch  # noqa: PLC0415 - seconds to import

    if device() == "cuda":
        torch.cuda.synchronize()


def _accuracy(found_SK: npt.NDArray[np.int64], best_SK: npt.NDArray[np.int64]) -> dict[str, float]:
    held = [np.isin(best, found).mean() for best, found in zip(best_SK, found_SK, strict=True)]
    return {
        "recall": float(np.mean(held)),
        "ids_exact": float((found_SK == best_SK).all(axis=1).mean()),
    }


def _stored(vector_ND: _Vectors) -> _Vectors:
    unit_ND: _Vectors = vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)
    return unit_ND.astype(np.float16).astype(np.float32)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give faiss, numba and torch the same number of threads for a while."""
    import faiss  # noqa: PLC0415 - an extra
    import numba  # noqa: PLC0415 - beside the other two
    import torch  # noqa: PLC0415 - seconds to import

    before = faiss.omp_get_max_threads(), numba.get_num_threads(), torch.get_num_threads()
    try:
        faiss.omp_set_num_threads(count)
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        torch.set_num_threads(count)
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        numba.set_num_threads(before[1])
        torch.set_num_threads(before[2])


def _peaks(
    names: list[str],
    vectors: tuple[_Vectors, _Vectors],
    *,
    k: int,
    threads: int,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Run every method in a fresh interpreter and ask how much memory it took.

    Not by multiprocessing: its children import the caller's main module, here the whole command
    line, whose memory is not the method's.
    """
    peaks = {}
    count = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        for side, vector_ND in zip(("query", "positive"), vectors, strict=True):
            np.save(Path(folder, f"{side}.npy"), vector_ND)
        for name in names:
            done = subprocess.run(
                [sys.executable, "-m", "b3_core.bench.neighbours", folder, name, str(k)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, **count},
            )
            if done.returncode:
                raise RuntimeError(f"{name} failed in a process of its own: {done.stderr[-500:]}")
            peaks[name] = json.loads(Path(folder, "peak.json").read_text(encoding="utf-8"))
            progress(len(peaks), len(names))
    return peaks


def _measure(folder: str, name: str, k: int) -> None:
    vectors = [np.load(Path(folder, f"{side}.npy")) for side in ("query", "positive")]
    before = peak_mb()
    METHODS[name].run(vectors[0], vectors[1], k)
    peak = peak_mb()
    found = {"peak_mb": peak, "peak_above_mb": peak - before, **gpu_peak()}
    Path(folder, "peak.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
