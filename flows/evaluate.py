"""The flow ``evaluate``: students in, the table of arms out."""

from prefect import flow, tags
from prefect.futures import as_completed
from prefect.task_runners import ThreadPoolTaskRunner

from b3_core import ahead
from b3_core.artifacts import Address
from b3_core.benchmarks import read_table
from b3_core.config import PipelineSpec
from b3_core.errors import B3Error, reason
from b3_core.plan import Plan
from b3_core.promote import Promotion
from b3_core.ray_session import TASKS_AT_ONCE, RaySession, session
from b3_core.stage import missing
from b3_core.store import ArtifactStore
from flows import outcome
from flows.mine import plan_of
from flows.train import train
from tasks import reporting
from tasks.artifacts import publish_benchmarks, publish_promotion, publish_results
from tasks.stages import evaluate_student, run_stage
from tasks.turns import PART, gpu_turn


@flow(
    name="evaluate",
    task_runner=ThreadPoolTaskRunner(max_workers=TASKS_AT_ONCE),
    persist_result=False,
)
def evaluate(spec: PipelineSpec) -> outcome.Outcome:
    """Evaluate every student of CONFIG; return the table of arms and their differences.

    What is not trained yet is trained first.
    """
    ahead.check_benchmarks(spec)
    store = ArtifactStore(spec.store.root)
    with session(spec.compute) as ray:
        plan = plan_of(spec, store)
        if missing(plan.students, store):
            with tags(PART):
                train(spec)
        key_of = {made.address: key for key, made in reversed(plan.evaluations.items())}
        unjudged = {
            key_of[made.address]: made for made in missing(plan.evaluations.values(), store)
        }
        if unjudged:
            with gpu_turn(spec.compute), reporting.step("evaluate") as progress:
                futures = [
                    evaluate_student.submit(
                        evaluation,
                        ray,
                        store.root,
                        arm=arm,
                        seed=seed,
                        one_thread=evaluation.student.one_thread,
                    )
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
        results |= _benchmarks(plan, spec, store, ray)  # last: one that fails is an error
    return results


def _benchmarks(
    plan: Plan, spec: PipelineSpec, store: ArtifactStore, ray: RaySession
) -> outcome.Outcome:
    """Put students through the benchmarks of CONFIG; what fails is told when the rest is done."""
    table = plan.benchmarks(spec)
    if table is None:
        return {}
    # Arms may have a student in common, which is put through them once.
    arms_of: dict[Address, list[str]] = {}
    for arm, part in table.parts:
        arms_of.setdefault(part.address, []).append(arm)
    undone = missing([part for _, part in table.parts], store)
    failed = []
    if undone:
        with gpu_turn(spec.compute), reporting.step("benchmarks") as progress:
            futures = {
                evaluate_student.submit(
                    part,
                    ray,
                    store.root,
                    arm=f"{arms_of[part.address][0]} on {part.called}",
                    seed=spec.seeds[0],
                ): part
                for part in undone
            }
            for done, future in enumerate(as_completed(list(futures)), start=1):
                try:
                    future.result()
                except Exception as error:  # the others go on
                    part = futures[future]
                    failed += [(arm, part, reason(error)) for arm in arms_of[part.address]]
                progress(done, len(futures))
    table = table.without(failed)
    if store.find(table.address) is None:
        run_stage(table, store)
    made = store.get(table.address)
    publish_benchmarks(spec.name, made)
    if failed:
        arm, part, why = failed[0]
        raise B3Error(
            f"{len({part.address for _, part, _ in failed})} of {len(undone)} benchmark tasks "
            f"failed, first {arm} on "
            f"{part.called}: {why}",
            remedy=f"the others are in {read_table(made)['benchmarks_report']}: mend it and run "
            "the same command again",
        )
    return read_table(made)


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
