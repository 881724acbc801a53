"""The flow ``batch-size``: one CONFIG at several batch sizes, every arm at each."""

from typing import Any

from prefect import flow

from b3_core.bench.batch_size import of_size, rows_of, with_worth
from b3_core.config import PipelineSpec
from b3_core.ray_session import session
from flows.outcome import if_done
from flows.pipeline import pipeline


@flow(name="batch-size", persist_result=False)
def batch_size(spec: PipelineSpec, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Train and evaluate the arms of CONFIG at each batch size, on the same examples.

    Returns
    -------
    dict
        ``rows`` as ``b3_core.bench.batch_size`` has them.
    """
    rows = []
    with session(spec.compute):  # all sizes share one Ray
        for size in sizes:
            at = of_size(spec, size)
            rows += rows_of(size, if_done("pipeline", at) or pipeline(at))
    return {"rows": with_worth(rows)}
