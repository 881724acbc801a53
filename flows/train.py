"""The flow ``train``: manifests in, one student each out."""

from prefect import flow, tags

from b3_core import ahead
from b3_core.config import PipelineSpec
from b3_core.ray_session import session
from b3_core.stage import missing
from b3_core.store import ArtifactStore
from flows import outcome
from flows.mine import mine, mine_again, plan_of
from tasks.events import STUDENTS_TRAINED, announce
from tasks.stages import train_students, verify_manifests
from tasks.turns import PART, gpu_turn


@flow(name="train", persist_result=False)
def train(spec: PipelineSpec) -> outcome.Outcome:
    """Train a student on every manifest of CONFIG; return the URIs of the `students`.

    What is not mined yet is mined first. Students share one job of Ray; one a core where each
    trains on one thread, one a GPU or share of one where those are reserved; leg by leg, where a
    curriculum is mined anew on the way. Each manifest is verified before anything is trained on it.
    """
    ahead.check_student(spec)
    store = ArtifactStore(spec.store.root)
    plan = plan_of(spec, store)
    with session(spec.compute) as ray:
        for number, leg in enumerate(plan.legs):
            if missing(leg.manifests.values(), store):
                with tags(PART):
                    mine_again(spec, number) if number else mine(spec)
            untrained = missing(leg.students.values(), store)
            if untrained:
                verify_manifests(untrained, store)
                with gpu_turn(spec.compute):
                    train_students(untrained, ray, store)
    trained = outcome.trained(plan, store)
    announce(STUDENTS_TRAINED, store, pipeline=spec.name, uris=trained["students"])
    return trained
