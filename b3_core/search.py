"""Who may be among a query's best positives, and how far those scores can be off.

    exact        faiss.knn, fp32              CPU; faiss's GPU build up to C = 2048
                 MatrixUnits, bf16 then fp32  CPUs with AMX (few rows stay with faiss)
                 Torch, fp16 then fp32        any C, where torch sees a GPU and faiss cannot do it
                                              (few rows stay on the CPU)
    approximate  Index, IVF or HNSW (faiss)   far from all N positives are scored

    query_BD -> propose -> Proposal -> neighbours.rank: exact scores, order, and what is not sure

A search only proposes. It promises that no score it gives is further from the exact one than
``error_B``, and that no positive it left out scores more than ``ceiling_B``.

Legend: N positives, D width of a vector, B queries of one block, C candidates a query.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from b3_core.errors import InputError
from b3_core.precision import full_precision
from b3_core.usage import has_amx

Method = Literal["exact", "ivf", "hnsw"]
Dtype = Literal["float32", "float16", "bfloat16"]

#: Lists of an IVF index that are read for one query. Of the window of ranks 30 to 130 of real
#: code embeddings they held 0.90 among 20,000, 40,000 and 60,000 rows alike, 256 lists held 0.96.
IVF_PROBES = 128
HNSW_LINKS = 32
#: Entries a search of the HNSW graph keeps, for each candidate wanted; 1 held 0.90 of that
#: window among 40,000 rows, 2 held 0.96 (0.94 among 60,000), 4 held 0.98.
HNSW_BREADTH = 2

_IVF_ROUNDS = 10  # of k-means; its default of 25 finds no better lists
_IVF_SAMPLE = 64  # positives a list that k-means looks at
_GPU_CANDIDATES = 2048  # faiss finds no more than this on a GPU
_GPU_ROWS = 10_000  # fewer are ranked on the CPU before torch is imported and has its GPU
_AMX_ROWS = 30_000  # fewer are ranked by faiss before torch is imported
_LEAST_ROUNDING = 1e-5
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # CUDA, ROCm, Windows' Linux


class Proposal(NamedTuple):
    """What a search says about a block of queries."""

    score_BC: npt.NDArray[np.float32]
    """Inner products as the search rounds them, best first."""
    row_BC: npt.NDArray[np.int64]
    """Positives, none twice; -1 where the search found fewer."""
    error_B: npt.NDArray[np.float64]
    """How far a score of that query can be from the exact one."""
    ceiling_B: npt.NDArray[np.float64]
    """More than no positive that is missing scores, exactly; -inf: the search does not know."""


class Search(Protocol):
    """Proposes candidates among the positives it was made for."""

    better: Callable[[], "Search"] | None
    """Makes the search for rows this one leaves unsure; None: they need more candidates."""

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Name C < N candidates, or more, for each query; ``row_B`` are the queries' rows."""


def exact(positive_ND: npt.NDArray[np.float32], *, memory_mb: int) -> Search:
    """Choose the fastest search here that finds every positive that matters.

    Parameters
    ----------
    positive_ND
        Finite, contiguous.
    memory_mb
        For the scores of one tile on a GPU, and the rounding of positives.

    Raises
    ------
    InputError
        faiss is not installed.
    """
    faiss = _faiss()
    gpus = getattr(faiss, "get_num_gpus", lambda: 0)()  # some CPU builds lack the function
    if not gpus and len(positive_ND) >= _GPU_ROWS and torch_sees_gpu():
        return Torch(positive_ND, device="cuda", dtype="float16", memory_mb=memory_mb)
    if not gpus and len(positive_ND) >= _AMX_ROWS and has_amx():
        # By name: that module builds on this one.
        units: Search = importlib.import_module("b3_core.matrix_units").MatrixUnits(
            positive_ND, memory_mb=memory_mb
        )
        return units
    return Faiss(positive_ND, gpu=gpus > 0, memory_mb=memory_mb)


def approximate(
    positive_ND: npt.NDArray[np.float32], *, method: Literal["ivf", "hnsw"], memory_mb: int
) -> Search:
    """Build an index over the positives: see :class:`Index`."""
    return Index(positive_ND, method=method, memory_mb=memory_mb)


def lengths(vector_ND: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the norm of every vector, without an (N, D) temporary; not finite where it is not."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vector_ND, vector_ND, dtype=np.float64)))


def ivf_lists(rows: int) -> int:
    """Return how many lists an IVF index has: 4 sqrt(N), as faiss advises.

    At most N / 39, so that k-means has the 39 positives a list that it asks for.
    """
    return max(min(round(4 * math.sqrt(rows)), rows // 39), 1)


class Faiss:
    """Exact search in fp32.

    A score is off by at most D u |q| |p|, u = 2**-24, in any order of summation (Higham, Accuracy
    and Stability of Numerical Algorithms, 2002, section 3.1, to first order in u); the bound used
    is never below 1e-5 |q| |p|.
    """

    better: Callable[[], Search] | None = None

    def __init__(
        self, positive_ND: npt.NDArray[np.float32], *, gpu: bool = False, memory_mb: int = 1024
    ) -> None:
        self.positive_ND = positive_ND
        self.longest = lengths(positive_ND).max(initial=0.0)
        self.faiss = _faiss()
        self.gpu = self.faiss.StandardGpuResources() if gpu else None
        self.memory_mb = memory_mb
        self._beyond: Search | None = None

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Search on faiss's GPU if it has one and C is small enough."""
        faiss, inner = self.faiss, self.faiss.METRIC_INNER_PRODUCT
        if self.gpu is None:
            found = faiss.knn(query_BD, self.positive_ND, candidates, metric=inner)
        elif candidates <= _GPU_CANDIDATES:
            found = faiss.knn_gpu(self.gpu, query_BD, self.positive_ND, candidates, metric=inner)
        else:
            return self._search_beyond().propose(query_BD, candidates, row_B)
        score_BC, row_BC = found
        error_B = rounding(query_BD.shape[1]) * self.longest * lengths(query_BD)
        return Proposal(score_BC, row_BC, error_B, score_BC[:, -1] + error_B)

    def _search_beyond(self) -> Search:
        if self._beyond is None:
            # In fp32 at once: whoever needs so many candidates is deep among near ties.
            self._beyond = (
                Torch(self.positive_ND, device="cuda", dtype="float32", memory_mb=self.memory_mb)
                if torch_sees_gpu()
                else Faiss(self.positive_ND)
            )
        return self._beyond


class Among:
    """A search among some of the rows, where the others need not be found.

    Parameters
    ----------
    inner
        Made for the positives of those rows.
    row_A
        The rows, ascending.
    """

    def __init__(self, inner: Search, row_A: npt.NDArray[np.intp]) -> None:
        self.inner, self.row_A = inner, row_A
        finer = inner.better
        self.better: Callable[[], Search] | None = finer and (lambda: Among(finer(), row_A))

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Search, and call rows by their numbers among all."""
        most = min(candidates, len(self.row_A))
        found = self.inner.propose(query_BD, most, row_B)
        row_BC = np.where(found.row_BC < 0, -1, self.row_A[found.row_BC])
        if most == len(self.row_A):  # none is missing that needs to be found
            found = found._replace(ceiling_B=np.full(len(query_BD), -np.inf))
        return found._replace(row_BC=row_BC)


class Torch:
    """Exact search by matrix products, tile by tile, the best C merged.

    With q' and p' for vectors rounded to ``dtype``, P for the longest |p| and e for the longest
    |p - p'|, a score is off by at most

        |q - q'| (P + e) + |q| e         rounded vectors: q'p' - qp = (q' - q) p' + q (p' - p)
        + 4 D 2**-24 |q'| (P + e)        sums in fp32; 4: tensor cores cut off instead of rounding
        + u max |score| + tiny           scores rounded to dtype: u = 2**-11 fp16, 2**-8 bf16

    (Fasi, Higham, Mikaitis, Pranesh, Numerical behavior of NVIDIA tensor cores, 2021). |q - q'|
    and e are measured, not bounded: vectors that were stored as float16 lose nothing in fp16, and
    in bf16 about 0.0017 |q| where Cauchy-Schwarz alone would have to allow u = 0.0039. In fp32
    only the sums round, as in :class:`Faiss`. What overflows fp16 has an error of inf or NaN, so
    its rows are never sure and go to fp32.

    Parameters
    ----------
    device
        Torch device. The positives stay on it if they fill less than half of what is free, else
        each tile is sent again for every block.
    memory_mb
        For the scores and the selection of one tile.
    """

    def __init__(
        self, positive_ND: npt.NDArray[np.float32], *, device: str, dtype: Dtype, memory_mb: int
    ) -> None:
        # By name: import-linter takes any import for a need, and to read ranks needs no torch.
        self.torch = importlib.import_module("torch")
        self.device = self.torch.device(device)
        self.dtype = getattr(self.torch, dtype)
        self.memory_mb = memory_mb
        self.low = dtype != "float32"
        self.better: Callable[[], Search] | None = None
        if self.low:
            self.better = lambda: Torch(
                positive_ND, device=device, dtype="float32", memory_mb=memory_mb
            )
        home = self._home(positive_ND.size)
        self.positive_ND = self.torch.empty(positive_ND.shape, dtype=self.dtype, device=home)
        self.longest, self.lost = float(lengths(positive_ND).max(initial=0.0)), 0.0
        step = max((memory_mb << 20) // (16 * max(positive_ND.shape[1], 1)), 1)
        for start in range(0, len(positive_ND), step):
            part = self.torch.from_numpy(positive_ND[start : start + step])
            self.positive_ND[start : start + step] = part
            if self.low:
                self.lost = max(self.lost, float(self._lost(part).max()))

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Score every tile of positives and keep the best C of all tiles so far."""
        torch = self.torch
        query = torch.from_numpy(query_BD)
        low_BD = query.to(self.device, self.dtype)
        best_BC: Any = None
        row_BC: Any = None
        with full_precision(torch):
            for start, part in self._tiles(len(query_BD), candidates):
                score_BT = low_BD @ part.T
                score, row = score_BT.topk(min(candidates, len(part)), dim=1)
                row += start
                if best_BC is not None:
                    score, row = torch.cat([best_BC, score], 1), torch.cat([row_BC, row], 1)
                    score, keep = score.topk(min(candidates, score.shape[1]), dim=1)
                    row = row.gather(1, keep)
                best_BC, row_BC = score, row
        score_BC = best_BC.float().cpu().numpy()
        error_B = self._error(query_BD, query, score_BC)
        return Proposal(score_BC, row_BC.cpu().numpy(), error_B, score_BC[:, -1] + error_B)

    def _error(
        self, query_BD: npt.NDArray[np.float32], query: Any, score_BC: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float64]:
        length_B, off = lengths(query_BD), rounding(query_BD.shape[1])
        if not self.low:
            return np.asarray(off * length_B * self.longest)
        kind = self.torch.finfo(self.dtype)
        lost_B, longest = self._lost(query).numpy(), self.longest + self.lost
        error_B = lost_B * longest + length_B * self.lost
        error_B += 4 * off * (length_B + lost_B) * longest
        largest_B = np.maximum(np.abs(score_BC[:, 0]), np.abs(score_BC[:, -1]))
        return np.asarray(error_B + kind.eps / 2 * largest_B + kind.tiny)

    def _lost(self, vector: Any) -> Any:
        """Return |v - v'|, with room for the rounding of that norm itself."""
        return 1.001 * (vector - vector.to(self.dtype).float()).double().norm(dim=1)

    def _tiles(self, block: int, candidates: int) -> Iterator[tuple[int, Any]]:
        """Cut the positives so that one tile's scores and its topk fit into the memory."""
        size = max((self.memory_mb << 20) // (4 * block * self.dtype.itemsize), candidates)
        for start in range(0, len(self.positive_ND), size):
            yield start, self.positive_ND[start : start + size].to(self.device)

    def _home(self, cells: int) -> Any:
        if self.device.type != "cuda":
            return self.device
        free, _ = self.torch.cuda.mem_get_info(self.device)
        return self.device if cells * self.dtype.itemsize < free / 2 else "cpu"


class Index:
    """Approximate search; rows it finds too little for are searched exactly.

    ``ivf``: k-means of fixed seed over the positives; each query reads the ``IVF_PROBES`` lists
    nearest to it of ``ivf_lists(N)``. ``hnsw``: a graph of ``HNSW_LINKS`` links a positive, built
    on one thread, since threads that insert at once would race for the links.

    Seconds of one core, building included, over those of an exact search: ivf 1.4 and hnsw 2.1 at
    60,000 rows of 256 numbers, 0.9 and 0.8 at 200,000. Exact search grows with N N, ivf with
    N sqrt(N), hnsw with little more than N.
    """

    def __init__(
        self,
        positive_ND: npt.NDArray[np.float32],
        *,
        method: Literal["ivf", "hnsw"],
        memory_mb: int,
    ) -> None:
        self.faiss = _faiss()
        self.better: Callable[[], Search] | None = lambda: exact(positive_ND, memory_mb=memory_mb)
        self.longest = lengths(positive_ND).max(initial=0.0)
        build = self._ivf if method == "ivf" else self._hnsw
        self.index, self.hnsw = build(positive_ND), method == "hnsw"

    def propose(
        self, query_BD: npt.NDArray[np.float32], candidates: int, row_B: npt.NDArray[np.intp]
    ) -> Proposal:
        """Look the queries up; a query that meets fewer than C positives has -1 after them."""
        if self.hnsw:
            self.index.hnsw.efSearch = HNSW_BREADTH * candidates
        score_BC, row_BC = self.index.search(query_BD, candidates)
        error_B = rounding(query_BD.shape[1]) * self.longest * lengths(query_BD)
        return Proposal(score_BC, row_BC, error_B, np.full(len(query_BD), -np.inf))

    def _ivf(self, positive_ND: npt.NDArray[np.float32]) -> Any:
        rows, width = positive_ND.shape
        inner, lists = self.faiss.METRIC_INNER_PRODUCT, ivf_lists(rows)
        index = self.faiss.IndexIVFFlat(self.faiss.IndexFlatIP(width), width, lists, inner)
        index.cp.niter, index.cp.max_points_per_centroid = _IVF_ROUNDS, _IVF_SAMPLE
        index.nprobe = min(IVF_PROBES, lists)
        index.train(positive_ND)
        index.add(positive_ND)
        return index

    def _hnsw(self, positive_ND: npt.NDArray[np.float32]) -> Any:
        inner = self.faiss.METRIC_INNER_PRODUCT
        index = self.faiss.IndexHNSWFlat(positive_ND.shape[1], HNSW_LINKS, inner)
        with one_thread():
            index.add(positive_ND)
        return index


def nearest(
    vector_XD: npt.NDArray[np.float32], centre_LD: npt.NDArray[np.float32], best: int
) -> npt.NDArray[np.int64]:
    """Return the centres of largest inner product, (X, best), best first; on one thread."""
    with one_thread() as faiss:
        inner = faiss.METRIC_INNER_PRODUCT
        return np.asarray(faiss.knn(vector_XD, centre_LD, best, metric=inner)[1])


@contextmanager
def one_thread() -> Iterator[Any]:
    """Have faiss, which is what this gives, work on one thread: the same sums on any machine."""
    faiss = _faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(threads)


def rounding(width: int) -> float:
    """Return how far a sum of D float32 products of unit vectors can be off: D 2**-24."""
    return max(_LEAST_ROUNDING, width * 2.0**-24)


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415 - an extra: CPU or GPU build, the user's choice
    except ImportError as error:
        raise InputError(
            "ranking needs faiss, which is not installed",
            remedy="pip install 'b3-batches[cpu]'",
        ) from error
    return faiss


def let_go() -> None:
    """Give back what torch keeps of a GPU for later tiles: other processes may need it now."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def torch_sees_gpu() -> bool:
    """Ask torch, but only where asking can pay: to import it takes seconds."""
    if "torch" not in sys.modules and not any(Path(driver).exists() for driver in _DRIVERS):
        return False
    return bool(importlib.import_module("torch").cuda.is_available())
