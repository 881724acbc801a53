"""A CONFIG without orchestration: its stages, one after another, in one plain process.

    python -m b3_core.bench.overhead CONFIG      (prints what took how long, as JSON)

What the flows cost is measured beside this: the same stages of the same plan, called directly.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterable

from b3_core.config import PipelineSpec, load_config
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore


class Idle:
    """An actor whose work is to wait: what is left of a shard's time is orchestration."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def run(self) -> None:
        """Do one shard's work."""
        time.sleep(self._seconds)


def run_plain(spec: PipelineSpec) -> dict[str, float]:
    """Mine, train and evaluate CONFIG in this process.

    Returns
    -------
    dict
        Seconds by kind of stage, in the order of their making.
    """
    store = ArtifactStore(spec.store.root)
    seconds: dict[str, float] = {}

    def run(stages: Iterable[Stage]) -> None:
        for stage in stages:
            began = time.monotonic()
            stage.run(store)
            took = seconds.get(stage.name, 0.0) + time.monotonic() - began
            seconds[stage.name] = round(took, 2)

    datasets = [Pairs.of(dataset, spec.evaluate) for dataset in spec.datasets]
    run(datasets)
    refs = [
        PairsRef.of(dataset, store.get(pairs.address))
        for dataset, pairs in zip(spec.datasets, datasets, strict=True)
    ]
    plan = Plan.of(spec, refs, store)
    for leg in plan.legs:
        run(itertools.chain.from_iterable(vectors.shards for vectors in leg.vectors))
        mined = leg.vectors, leg.ranks, leg.graphs, leg.communities, leg.manifests.values()
        run(itertools.chain(*mined, leg.students.values()))
    run(plan.evaluations.values())
    run([plan.results])
    return seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_plain(load_config(sys.argv[1]))) + "\n")
