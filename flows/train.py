"""The flow ``train``: manifests in, one student each out."""

from prefect import flow

from b3_core.config import PipelineSpec
from b3_core.plan import Plan
from b3_core.ray_session import session
from b3_core.store import ArtifactStore
from flows import outcome
from flows.mine import mine, plan_of
from tasks.stages import train_students


@flow(name="train", persist_result=False)
def train(spec: PipelineSpec) -> outcome.Outcome:
    """Train a student on every manifest of CONFIG; return the URIs of the ``students``.

    What is not mined yet is mined first. All students share one Ray Train job.
    """
    store = ArtifactStore(spec.store.root)
    with session(spec.compute) as ray:
        plan = mined_plan(spec, store)
        missing = [made for made in plan.students.values() if store.find(made.address) is None]
        if missing:
            train_students(missing, ray, store)
    return outcome.trained(plan, store)


def mined_plan(spec: PipelineSpec, store: ArtifactStore) -> Plan:
    """Return the plan once all of its manifests are there."""
    plan = plan_of(spec, store)
    if any(store.find(made.address) is None for made in plan.manifests.values()):
        mine(spec)
    return plan
