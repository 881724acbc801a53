"""The flow ``tune``: candidates in, the one that does best on validation rows out."""

from typing import Any, Literal

from prefect import flow

from b3_core import tune as choose
from b3_core.config import ArmSpec, PipelineSpec
from b3_core.ray_session import session
from b3_core.stage import generator
from flows.pipeline import pipeline


@flow(name="tune", persist_result=False)
def tune(
    spec: PipelineSpec,
    trials: int = 12,
    seeds: int = 4,
    judge: Literal["training", "eval"] = "training",
    *,
    refresh: bool = True,
) -> dict[str, Any]:
    """Train candidates on CONFIG's rows and keep the better half, round by round.

    Parameters
    ----------
    spec
        CONFIG; its own mining and batches are the default that the candidates are measured by.
    trials
        Candidates, the default included.
    seeds
        Seeds of the last round of candidates.
    judge
        ``training``: candidates are judged on rows held out of the training rows, and ``eval_uri``
        is never read, since what one reports on is not what one chooses by. ``eval``: what
        ``eval_uri`` names are validation rows already.
    refresh
        Whether the winner is tried once more, as arm ``refresh``, on twice the seeds: mined again
        after its first epoch with the student so far. It costs an embedding of all rows a seed, in
        every run, so that it is chosen only where the interval of its difference to the winner
        (``b3`` in that table) is above zero.

    Returns
    -------
    dict
        ``rounds``: the table of arms and the differences of each; ``chosen``: the winner's name;
        ``refresh``: whether it mines again; ``config``: CONFIG with the winner's keys.
    """
    data = choose.trials_of(spec, held_in=judge == "training")
    arms = {a.name: a for a in choose.candidates(spec, trials, rng=generator(0, "tune"))}
    left = list(arms)
    tables: list[dict[str, Any]] = []

    def compare(**changed: Any) -> dict[str, Any]:
        results = pipeline(data.model_copy(update=changed))
        tables.append({key: results[key] for key in ("arms", "differences")})
        return tables[-1]

    with session(spec.compute):  # all rounds share one Ray
        for count, used in choose.rounds(len(arms), seeds):
            if tables:
                left = choose.survivors(tables[-1]["arms"], count)
            tried = tuple(arms[name] for name in left)
            compare(arms=("random", *tried), seeds=tuple(range(used)))
        # The default goes on for comparison, and wins only if it is the best.
        mrr = {row["arm"]: row["mrr"] for row in tables[-1]["arms"]}
        winner = arms[max(left, key=lambda name: mrr[name])]
        mining, batches = data.model_copy(update={"arms": (winner,)}).arm(winner.name)
        again = choose.refreshed(batches) if refresh else None
        better = False
        if again is not None:
            anew = ArmSpec(name="refresh", batches=again.model_dump(include={"curriculum"}))
            duel = compare(
                mining=mining,
                batches=batches,
                arms=("random", "b3", anew),
                seeds=tuple(range(2 * seeds)),
            )
            better = duel["differences"]["b3 - refresh"]["high"] < 0
            if better:
                winner = winner.model_copy(update={"batches": anew.batches})
    return {
        "rounds": tables,
        "chosen": winner.name,
        "refresh": better,
        "config": choose.chosen(spec, winner),
    }
