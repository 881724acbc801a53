"""The flow ``pipeline``: mine, train and evaluate in one run."""

from prefect import flow, tags

from b3_core import ahead
from b3_core.config import PipelineSpec
from b3_core.ray_session import session
from flows.evaluate import evaluate
from flows.mine import mine
from flows.outcome import Outcome
from flows.train import train
from tasks.turns import PART


@flow(name="pipeline", persist_result=False)
def pipeline(spec: PipelineSpec) -> Outcome:
    """Mine the batches of CONFIG, train its students on them, and compare the arms.

    Returns
    -------
    dict
        ``arms`` and ``differences`` as ``evaluate`` returns them, and the URIs of ``manifests``
        and ``students``.
    """
    ahead.check_student(spec)
    ahead.check_benchmarks(spec)
    with tags(PART), session(spec.compute):  # the three subflows share one Ray
        mined = mine(spec)
        trained = train(spec)
        results = evaluate(spec)
    return {**results, **mined, **trained}
