"""Our teacher beside sentence-transformers' own ``encode``: texts a second, equal vectors.

    texts of the pair table -> every method in turn, `repeats` times over, in one process
                            -> texts a second, tokens a second, cosine with ours

The same model, precision, device and length of texts. Both sort by length what they batch; ours
only within blocks of 256 rows, so that a row's vector does not depend on how the work is cut
(:mod:`b3_core.teacher`). What that costs is what this measures.

Legend: N texts, D width.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core import teacher
from b3_core.bench.machine import machine
from b3_core.config import TeacherSpec
from b3_core.progress import Progress, silent
from b3_core.usage import gpu_peak

_WARM_UP = 512  # texts
_Vectors = npt.NDArray[np.float32]


def bench_embed(
    texts: Sequence[str],
    spec: TeacherSpec,
    *,
    batch_sizes: Sequence[int] = (64, 256),
    threads: int = 2,
    repeats: int = 3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Embed texts by ours and, at each batch size, by sentence-transformers.

    Parameters
    ----------
    texts
        N texts.
    spec
        The model, its precision and length; prompts are not used.
    batch_sizes
        Of sentence-transformers; ours has 64.
    threads
        Of torch, for both.
    repeats
        Timed runs of every method.
    progress
        Told the runs done.

    Returns
    -------
    dict
        ``results``, one a method: ``method``, ``batch_size``, ``texts_per_second`` (median) with
        ``low`` and ``high``, ``tokens_per_second``, ``least_cosine`` of any text's vector with
        ours; ``gpu_peak_mb`` of all, on a GPU; ``texts``, ``tokens``, ``precision``, ``machine``.

    Raises
    ------
    InputError
        There is no such model.
    """
    encoder = teacher.Teacher(spec, threads=threads)
    methods: dict[tuple[str, int], Callable[[Sequence[str]], _Vectors]] = {
        ("b3", teacher.MINIBATCH): encoder.encode
    }
    for size in batch_sizes:
        methods["sentence-transformers", size] = partial(_plain, encoder.model, size)
    for run in methods.values():
        run(texts[:_WARM_UP])
    took: dict[tuple[str, int], list[float]] = {name: [] for name in methods}
    vector_of: dict[tuple[str, int], _Vectors] = {}
    for done in range(repeats * len(methods)):
        name = list(methods)[done % len(methods)]
        started = time.perf_counter()
        vector_of[name] = methods[name](texts)
        took[name].append(time.perf_counter() - started)
        progress(done + 1, repeats * len(methods))
    tokens = _tokens(encoder.model, texts)
    ours = next(iter(vector_of.values()))
    results = [
        {
            "method": name,
            "batch_size": size,
            **_rates(took[name, size], tokens),
            "least_cosine": float(np.einsum("nd,nd->n", ours, vector_of[name, size]).min()),
        }
        for name, size in methods
    ]
    return {
        "results": results,
        "texts": len(texts),
        "tokens": int(sum(tokens)),
        "model": spec.model,
        "precision": spec.precision,
        "threads": threads,
        "repeats": repeats,
        **gpu_peak(),
        "machine": machine(),
    }


def _rates(took: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    rate = len(tokens) / np.array(took)
    return {
        "texts_per_second": round(float(np.median(rate)), 1),
        "low": round(float(rate.min()), 1),
        "high": round(float(rate.max()), 1),
        "tokens_per_second": round(float(np.median(rate)) * sum(tokens) / len(tokens)),
    }


def _plain(model: Any, batch_size: int, texts: Sequence[str]) -> _Vectors:
    found = model.encode(
        list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(found, np.float32)


def _tokens(model: Any, texts: Sequence[str]) -> list[int]:
    """Count the tokens that the model reads of each text."""
    found = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)
    return [len(ids) for ids in found["input_ids"]]
