"""The flow ``train``: manifests in, one student each out."""

from prefect import flow

from b3_core.config import PipelineSpec
from b3_core.plan import Plan
from b3_core.ray_session import session
from b3_core.store import ArtifactStore
from flows.mine import mine, plan_of
from tasks.stages import train_students


@flow(name="train", persist_result=False)
def train(spec: PipelineSpec) -> list[str]:
    """Train a student on every manifest of CONFIG; return the students' URIs.

    What is not mined yet is mined first. All students share one Ray Train job.
    """
    store = ArtifactStore(spec.store.root)
    with session(spec.compute) as ray:
        plan = mined_plan(spec, store)
        students = list(plan.students.values())
        missing = [student for student in students if store.find(student.address) is None]
        if missing:
            train_students(missing, ray, store)
    return [store.get(student.address).uri for student in students]


def mined_plan(spec: PipelineSpec, store: ArtifactStore) -> Plan:
    """Return the plan once all of its manifests are there."""
    plan = plan_of(spec, store)
    if any(store.find(made.address) is None for made in plan.manifests.values()):
        mine(spec)
    return plan
