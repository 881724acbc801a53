"""The flow ``evaluate``: students in, the table of arms out."""

from prefect import flow
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from b3_core.config import PipelineSpec
from b3_core.plan import Plan
from b3_core.promote import Promotion
from b3_core.ray_session import RaySession, session
from b3_core.stage import missing
from b3_core.store import ArtifactStore
from flows import outcome
from flows.mine import plan_of
from flows.train import train
from tasks import reporting
from tasks.artifacts import publish_promotion, publish_results
from tasks.stages import evaluate_student, run_stage
from tasks.turns import gpu_turn


@flow(name="evaluate", task_runner=ThreadPoolTaskRunner(max_workers=32), persist_result=False)
def evaluate(spec: PipelineSpec) -> outcome.Outcome:
    """Evaluate every student of CONFIG; return the table of arms and their differences.

    What is not trained yet is trained first.
    """
    store = ArtifactStore(spec.store.root)
    with session(spec.compute) as ray:
        plan = plan_of(spec, store)
        if missing(plan.students, store):
            train(spec)
        unjudged = {
            key: evaluation
            for key, evaluation in plan.evaluations.items()
            if store.find(evaluation.address) is None
        }
        if unjudged:
            with gpu_turn(spec.compute), reporting.step("evaluate") as progress:
                futures = [
                    evaluate_student.submit(evaluation, ray, store.root, arm=arm, seed=seed)
                    for (arm, seed), evaluation in unjudged.items()
                ]
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    progress(done, len(futures))
        if store.find(plan.results.address) is None:
            run_stage(plan.results, store)
        results = outcome.evaluated(plan, store)
        publish_results(spec.name, results)
        if spec.promote is not None:  # Ray is still open: the one in place may have to be judged
            results["promotion"] = _promote(plan, spec, store, ray)
    return results


def _promote(
    plan: Plan, spec: PipelineSpec, store: ArtifactStore, ray: RaySession
) -> outcome.Outcome:
    """Compare the candidate with the student in place, and mark it."""
    promotion = Promotion(store, spec.name, spec.promote)
    evaluation = plan.evaluations[spec.promote.arm, spec.seeds[0]]
    promotion.nominate(evaluation)
    standing = promotion.standing(evaluation)
    if standing is not None and store.find(standing.address) is None:
        with gpu_turn(spec.compute):
            evaluate_student(standing, ray, store.root, arm="in place", seed=0)
    decision = promotion.decide(evaluation)
    publish_promotion(spec.name, decision, promotion.history)
    return decision
