"""Our scoring beside that of mteb and sentence-transformers: seconds, memory, equal metrics.

    clustered vectors -> every method in turn, `repeats` times over -> seconds, metrics
                      -> every method once, in a process of its own -> peak_mb

Vectors are there from the start, so only scoring is timed: from vectors to the means of hit@k and
MRR. Where torch sees a GPU all score there; ours brings its vectors from the host's memory, which
is timed too, where the others' are sent there by the method. The other evaluators compute more
than these, which cannot be turned off: it is said what.

Legend: Q queries, C corpus entries, D width.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.bench.machine import machine
from b3_core.bench.neighbours import TIE, clustered_pairs, device
from b3_core.evaluate.captions import rank_metrics
from b3_core.evaluate.retrieval import rank_of_positive
from b3_core.machine import cores
from b3_core.progress import Progress, silent
from b3_core.usage import peak_mb
from b3_core.versions import installed

_Vectors = npt.NDArray[np.float32]
_NOISE = 2.0  # of a query, in standard deviations of each number
_DEPTH = 100  # of the others' rankings: MRR beyond it is 0 for them

#: What each computes beside hit@1, hit@5, hit@10 and MRR.
ALSO = {
    "b3": "median rank; MRR of the whole ranking",
    "sentence-transformers": "cosine lists of 100, precision, recall, ndcg, map",
    "mteb": "lists of 1,000, ndcg, map, recall, precision, abstention curves",
}


def bench_evaluate(
    *,
    queries: int,
    corpus: int,
    dim: int,
    threads: int = 2,
    seed: int = 0,
    repeats: int = 3,
    methods: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score seeded vectors by every method and measure it.

    Parameters
    ----------
    queries, corpus, dim
        Q queries against C entries of D numbers, the first Q of which are their positives.
    threads
        Of every method alike.
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
        with ``seconds_low`` and ``seconds_high``; ``times_ours``, seconds over those of ``b3``;
        ``hit@1``, ``hit@5``, ``hit@10`` and ``mrr@100``; ``largest_difference`` of any of the four
        from ours; ``peak_mb`` and ``peak_above_mb``, the resident memory at most, with and without
        what interpreter, libraries and vectors take; and ``also``, what else it computes.

    Raises
    ------
    ValueError
        A size is not positive, there are more queries than entries, or a method is unknown.
    RuntimeError
        A method failed in its process.
    """
    names = list(METHODS if methods is None else methods)
    unknown = [name for name in names if name not in METHODS]
    if min(queries, corpus, dim, threads, repeats) < 1 or queries > corpus or unknown:
        raise ValueError(f"cannot bench {queries} x {corpus} x {dim}; unknown: {unknown}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for side, vector_ND in zip(("query", "corpus"), _vectors(corpus, dim, seed), strict=True):
            np.save(Path(folder, f"{side}.npy"), vector_ND[: queries if side == "query" else None])
        for done in range(repeats * len(names)):  # in turns: what slows down slows all
            name = names[done % len(names)]
            found[name].append(_in_a_process(folder, name, threads))
            progress(done + 1, repeats * len(names))
    ours = found.get("b3", next(iter(found.values())))
    results = [_row(name, runs, ours) for name, runs in found.items()]
    versions = installed(("mteb", "sentence-transformers"))
    asked = {"queries": queries, "corpus": corpus, "dim": dim, "threads": threads}
    about = machine()
    about["versions"] = {**about["versions"], **versions}
    return {**asked, "seed": seed, "repeats": repeats, "machine": about, "results": results}


def _vectors(corpus: int, dim: int, seed: int) -> Iterator[_Vectors]:
    """Draw pairs without equal entries: which of them is ahead, each evaluator says otherwise.

    Queries are farther from their positives than :func:`clustered_pairs` puts them, so that about
    half of them find something else first.
    """
    rng = np.random.default_rng(seed + 1)
    query_CD, corpus_CD = clustered_pairs(corpus + corpus // (TIE - 1) + 1, dim=dim, seed=seed)
    alone_N = np.arange(len(corpus_CD)) % TIE != 1
    query_CD += _NOISE * rng.standard_normal(query_CD.shape, np.float32) * query_CD.std(axis=0)
    query_CD /= np.linalg.norm(query_CD, axis=1, keepdims=True)
    yield query_CD[alone_N][:corpus]
    yield corpus_CD[alone_N][:corpus]


def _row(
    name: str, runs: list[dict[str, float]], ours: list[dict[str, float]]
) -> dict[str, str | float]:
    took = [run["seconds"] for run in runs]
    metrics = {metric: runs[-1][metric] for metric in ("hit@1", "hit@5", "hit@10", "mrr@100")}
    return {
        "method": name,
        "seconds": float(np.median(took)),
        "seconds_low": min(took),
        "seconds_high": max(took),
        "times_ours": float(np.median(took) / np.median([run["seconds"] for run in ours])),
        **metrics,
        "largest_difference": max(abs(metrics[each] - ours[-1][each]) for each in metrics),
        "peak_mb": max(run["peak_mb"] for run in runs),
        "peak_above_mb": max(run["peak_above_mb"] for run in runs),
        "also": ALSO[name],
    }


def _b3(query_QD: _Vectors, corpus_CD: _Vectors) -> dict[str, float]:
    import torch  # noqa: F401, PLC0415 - as a model that embeds has: scoring uses it if it is there

    group_C = np.arange(len(corpus_CD), dtype=np.int32)
    rank_Q = rank_of_positive(
        query_QD, corpus_CD, group_Q=group_C[: len(query_QD)], group_C=group_C
    )
    metrics = rank_metrics(rank_Q)
    metrics["mrr@100"] = float(np.where(rank_Q <= _DEPTH, 1 / rank_Q, 0).mean())
    return metrics


class _Stored:
    """What both evaluators ask of a model; its vectors are there already."""

    similarity_fn_name = "cosine"
    mteb_model_meta = None

    def __init__(self, query_QD: _Vectors, corpus_CD: _Vectors) -> None:
        import torch  # noqa: PLC0415 - seconds to import

        # Where a model would leave them.
        self.query, self.corpus = (
            torch.from_numpy(each).to(device()) for each in (query_QD, corpus_CD)
        )
        self.at = 0

    def encode_query(self, texts: Sequence[str], **_: Any) -> Any:
        return self.query

    def encode(self, inputs: Any, *, prompt_type: Any, **_: Any) -> Any:
        """Return the next entries in turn: mteb asks for one chunk of the corpus after another."""
        if prompt_type.value == "query":
            return self.query
        size = len(inputs.dataset)
        self.at += size
        return self.corpus[self.at - size : self.at]

    def similarity(self, a: Any, b: Any) -> Any:
        return a @ b.T  # of unit vectors, as ours


def _sentence_transformers(query_QD: _Vectors, corpus_CD: _Vectors) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import (  # noqa: PLC0415
        InformationRetrievalEvaluator,
    )

    model = _Stored(query_QD, corpus_CD)
    queries, corpus = _names("q", len(query_QD)), _names("c", len(corpus_CD))
    evaluator = InformationRetrievalEvaluator(
        queries=dict(zip(queries, queries, strict=True)),
        corpus=dict(zip(corpus, corpus, strict=True)),
        relevant_docs={query: {entry} for query, entry in zip(queries, corpus, strict=False)},
        mrr_at_k=[_DEPTH],
        accuracy_at_k=[1, 5, 10],
        score_functions={"cosine": model.similarity},
        write_csv=False,
    )
    found: Any = evaluator.compute_all_metrics(model, corpus_embeddings=model.corpus)
    hit = found["cosine"]["accuracy@k"]
    return {
        **{f"hit@{k}": float(hit[k]) for k in (1, 5, 10)},
        "mrr@100": float(found["cosine"]["mrr@k"][_DEPTH]),
    }


def _mteb(query_QD: _Vectors, corpus_CD: _Vectors) -> dict[str, float]:
    import mteb  # noqa: PLC0415 - an extra
    from datasets import Dataset  # noqa: PLC0415 - seconds to import
    from mteb._evaluators import RetrievalEvaluator  # noqa: PLC0415
    from mteb.models import SearchEncoderWrapper, search_wrappers  # noqa: PLC0415
    from mteb.timing import TimingStack  # noqa: PLC0415

    # It would bring every text into another form first: that is no scoring.
    wrappers: Any = search_wrappers
    wrappers.create_dataloader = lambda rows, **_: SimpleNamespace(dataset=rows)
    queries, corpus = _names("q", len(query_QD)), _names("c", len(corpus_CD))
    depths = (1, 3, 5, 10, 20, 100, 1000)  # as its retrieval tasks have them
    evaluator: Any = RetrievalEvaluator(
        corpus=Dataset.from_dict({"id": corpus, "text": corpus}),
        queries=Dataset.from_dict({"id": queries, "text": queries}),
        task_metadata=mteb.get_task("NFCorpus").metadata,  # any that is text to text
        hf_split="test",
        hf_subset="default",
        top_k=max(depths),
        timer=TimingStack(),
    )
    stored: Any = _Stored(query_QD, corpus_CD)
    model: Any = SearchEncoderWrapper(stored)
    ranked = evaluator(model, encode_kwargs={"show_progress_bar": False})
    relevant = {query: {entry: 1} for query, entry in zip(queries, corpus, strict=False)}
    found = evaluator.evaluate(relevant, ranked, depths)
    each = found.all_scores.values()  # its own means are rounded
    return {
        **{f"hit@{k}": float(np.mean([s[f"success_{k}"] for s in each])) for k in (1, 5, 10)},
        "mrr@100": float(np.mean(found.mrr[f"MRR@{_DEPTH}"])),
    }


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{at:07}" for at in range(count)]


METHODS: dict[str, Callable[[_Vectors, _Vectors], dict[str, float]]] = {
    "b3": _b3,
    "sentence-transformers": _sentence_transformers,
    "mteb": _mteb,
}


def _in_a_process(folder: str, name: str, threads: int) -> dict[str, float]:
    """Time a method in a fresh interpreter; what it writes to the terminal is not ours."""
    count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    most = min(threads, cores())  # numba refuses more
    done = subprocess.run(
        [sys.executable, "-m", "b3_core.bench.evaluate", folder, name],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            **{variable: str(value) for variable, value in count.items()},
            "NUMBA_NUM_THREADS": str(most),
            "HF_HUB_OFFLINE": "1",
        },
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed in a process of its own: {done.stderr[-500:]}")
    found: dict[str, float] = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    return found


def _measure(folder: str, name: str) -> None:
    query_QD, corpus_CD = (np.load(Path(folder, f"{side}.npy")) for side in ("query", "corpus"))
    few = min(len(query_QD), 200)
    METHODS[name](query_QD[:few], corpus_CD[: few * 10])  # compiles and imports what it needs
    before = peak_mb()
    start = time.perf_counter()
    metrics = METHODS[name](query_QD, corpus_CD)
    took = time.perf_counter() - start
    peak = peak_mb()
    found = {**metrics, "seconds": took, "peak_mb": peak, "peak_above_mb": peak - before}
    Path(folder, "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2])
