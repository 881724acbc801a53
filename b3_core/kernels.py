"""Have every compiled kernel on disk before a run needs it: ``python -m b3_core.kernels``.

    a few random rows -> mined in one piece, in cells and by labels, and ranked -> numba's cache

numba compiles a kernel when it is first called, for the types it is called with, and keeps it on
disk (beside the source, or in ``NUMBA_CACHE_DIR``). That takes a minute in all, which would else be
spent in the stages of somebody's first run, by each of their processes. The types are those of a
run because it is one, of random vectors.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.config import PipelineSpec, parse_config
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.embed import Vectors
from b3_core.evaluate import retrieval, tiles
from b3_core.matrix_units import MatrixUnits
from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings

_ROWS, _WIDTH, _LABELS = 300, 16, 12
_WAYS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("retrieval", {}),
    ("retrieval", {"cell_rows": 100}),
    ("retrieval", {"weights": "score", "evenness": 1.0}),
    ("classification", {}),
)


def compile_all() -> None:
    """Call every kernel as a run would."""
    with tempfile.TemporaryDirectory(prefix="b3-kernels-") as folder:
        for number, (task, mining) in enumerate(_WAYS):
            _mine(_spec(Path(folder, str(number)), task, mining))
    compile_ranking()


def compile_ranking() -> None:
    """Call the kernels of evaluations, and of ranks by matrix units."""
    group_Q = np.arange(4, dtype=np.int32)
    vector_QD = np.eye(4, dtype=np.float32)
    at_Q = np.arange(4)
    own = tiles.Parts(at_Q, at_Q + 1, at_Q)
    retrieval.rank_of_positive(vector_QD, vector_QD, group_Q=group_Q, group_C=group_Q)
    tiles.ranks_in_lists(vector_QD, vector_QD, own)
    # This imports torch: the second evaluation is by matrix units, where there are some.
    MatrixUnits(vector_QD, memory_mb=1).propose(vector_QD, 1, at_Q)
    tiles.ranks_of_best(vector_QD, vector_QD, own, gpu=False)


def _spec(folder: Path, task: str, mining: Mapping[str, Any]) -> PipelineSpec:
    """Write rows of a task to a folder, and a CONFIG on them."""
    folder.mkdir()
    label_N = np.arange(_ROWS) % _LABELS
    labelled = task == "classification"
    columns = {
        "query": [f"query {row}" for row in range(_ROWS)],
        "positive": [f"label {x}" if labelled else f"row {row}" for row, x in enumerate(label_N)],
    }
    other = {**columns, "query": [f"other {query}" for query in columns["query"]]}
    dataset = {"name": "rows", "task": task}
    for role, rows in (("uri", columns), ("eval_uri", other)):
        dataset[role] = str(folder / f"{role}.parquet")
        pq.write_table(pa.table(rows), dataset[role])
    settings = {
        "datasets": [dataset | {"query": "query", "positive": "positive"}],
        "mining": {"p": 2, "m": 20, "k": 8, **mining},
        "arms": ["random", "b3", "b3++"],
        "batches": {"batch_size": 16},
        "store": {"root": str(folder / "store")},
    }
    return parse_config(settings, base=folder)


def _mine(spec: PipelineSpec) -> None:
    """Mine a CONFIG on random vectors."""
    store = ArtifactStore(spec.store.root)
    refs = [
        PairsRef.of(dataset, Pairs.of(dataset, spec.evaluate).run(store))
        for dataset in spec.datasets
    ]
    (leg,) = Plan.of(spec, refs, store).legs
    for vectors in leg.vectors:
        _put_vectors(vectors, store)
    made: Iterable[Stage] = itertools.chain(
        leg.vectors, leg.ranks, leg.graphs, leg.communities, leg.manifests.values()
    )
    for stage in made:
        stage.run(store)


def _put_vectors(vectors: Vectors, store: ArtifactStore) -> None:
    rng = np.random.default_rng(0)
    for shard in vectors.shards:
        shape = 2, shard.stop - shard.start, _WIDTH
        sides = rng.standard_normal(shape, dtype=np.float32)
        query_ND, positive_ND = sides / np.linalg.norm(sides, axis=2, keepdims=True)
        with store.draft(shard.address, lineage={}, settings={}) as draft:
            Embeddings(query_ND, positive_ND).save(draft)


if __name__ == "__main__":
    _began = time.monotonic()
    compile_all()
    sys.stdout.write(f"kernels compiled in {time.monotonic() - _began:.0f} s\n")
