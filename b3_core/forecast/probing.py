"""What the probes share: the sample's pairs and plan, and what records say of finished stages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.config import PipelineSpec
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.forecast import past
from b3_core.forecast.jobs import Job, Rows, key_of
from b3_core.forecast.rates import Timing
from b3_core.forecast.sample import Sample
from b3_core.plan import Plan
from b3_core.stage import Stage
from b3_core.store import ArtifactStore

_JITTER = 0.5  # length of what is added to a copy of a unit vector


def read(spec: PipelineSpec) -> tuple[ArtifactStore, Plan, list[Timing], dict[str, Rows]]:
    """Read the sample's pairs, and plan what follows them."""
    store = ArtifactStore(spec.store.root)
    refs, timings, totals = [], [], {}
    for dataset in spec.datasets:
        stage = Pairs.of(dataset, spec.evaluate)
        artifact = stage.run(store)
        counts = artifact.counts
        totals[dataset.name] = Rows(counts["rows"], counts["heldout"])
        work = {"once": 1.0, "rows": float(counts["rows"] + counts["heldout"])}
        job = Job("pairs", key_of(stage), dataset.name, work, False)
        timings.append(timing_of(job, stage, store))
        refs.append(PairsRef.of(dataset, artifact))
    return store, Plan.of(spec, refs, store), timings, totals


def sample_of(request: Mapping[str, Any]) -> Sample:
    """Return the sample that a request is about."""
    return Sample(PipelineSpec.model_validate(request["spec"]), request["sampled"])


def stretched(
    vector_eD: npt.NDArray[np.float32], row_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return unit vectors of rows: the first e as they are, others near one of those."""
    known = len(vector_eD)
    vector_ND = vector_eD[row_N % known].copy()
    copies_N = row_N >= known
    if copies_N.any():
        rng = np.random.default_rng([7, int(row_N[0])])
        noise = rng.standard_normal((int(copies_N.sum()), vector_ND.shape[1]), dtype=np.float32)
        near = vector_ND[copies_N] + _JITTER / np.sqrt(vector_ND.shape[1]) * noise
        vector_ND[copies_N] = near / np.linalg.norm(near, axis=1, keepdims=True)
    return vector_ND


def timing_of(job: Job, stage: Stage, store: ArtifactStore, *, cold: bool = False) -> Timing:
    """Read what the record of a finished stage says it took."""
    made = store.get(stage.address)
    return past.timing_of(made, kind=job.kind, key=job.key, work=dict(job.work), cold=cold)
