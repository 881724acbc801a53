import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from b3_core.config import (
    ArmSpec,
    BatchSpec,
    BenchmarkSpec,
    DatasetSpec,
    EvalSpec,
    Phase,
    PipelineSpec,
    PromoteSpec,
)
from b3_core.dataset_stage import Pairs
from b3_core.errors import InputError
from b3_core.reading import held_out_part, read_split
from b3_core.tune import (
    DEFAULT,
    SPACE,
    candidates,
    chosen,
    refreshed,
    rounds,
    survivors,
    trials_of,
)
from tests.conftest import examples, topic_table

SPEC = PipelineSpec(datasets=(DatasetSpec(name="d", uri="/x", query="q", positive="p"),))


def drawn(count, spec=SPEC, seed=0):
    return candidates(spec, count, rng=np.random.default_rng(seed))


def test_candidates_are_arms_that_fit_and_the_default_comes_first():
    arms = drawn(60)
    assert arms[0].name == DEFAULT
    assert len({arm.name for arm in arms}) == 60
    spec = SPEC.model_copy(update={"arms": ("random", *arms)})
    assert PipelineSpec.model_validate(spec.model_dump())  # every arm is whole
    assert spec.arm(DEFAULT) == (SPEC.mining, SPEC.batches)
    for key in ("p", "m", "k", "graph", "partitioner", "repulsion", "evenness"):
        assert {arm.mining[key] for arm in arms[1:]} == set(SPACE[key])
    assert {spec.arm(arm.name)[1].epochs for arm in arms} == {3}


def test_candidates_follow_the_seed():
    names = [[arm.name for arm in drawn(9, seed=seed)] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_what_does_not_fit_a_batch_is_no_candidate():
    """In batches of 16 no community has 32 rows; half of a batch is one of 8, not of 16."""
    one = BatchSpec(batch_size=16, curriculum=(Phase(epochs=1),))
    mining = SPEC.mining.model_copy(update={"k": 8})
    arms = drawn(10_000, SPEC.model_copy(update={"batches": one, "mining": mining}))[1:]
    assert {arm.mining["k"] for arm in arms} == {8, 16}
    assert {len(arm.batches["curriculum"]) for arm in arms} == {1}  # no epoch to spare
    shared = {arm.mining["k"] for arm in arms if arm.batches["curriculum"][0]["random_share"]}
    assert shared == {8}


def test_no_candidate_is_the_default_under_another_name():
    names = [arm.name for arm in drawn(10_000)]
    assert len(names) > 200
    assert "p10m100k32-mutual-leiden-l0e1-r0s0" in names
    assert "p30m100k32-mutual-leiden-l0e1-r0s0" not in names  # 30 is what retrieval has for p


def test_candidates_go_with_the_arms_of_config():
    """An arm in batches of 16 has no room for communities of 32."""
    small = ArmSpec(name="small", batches={"batch_size": 16})
    mining = SPEC.mining.model_copy(update={"k": 16})
    spec = SPEC.model_copy(update={"mining": mining, "arms": ("random", small)})
    arms = drawn(10_000, spec)
    assert {arm.mining["k"] for arm in arms[1:]} == {8, 16}
    PipelineSpec.model_validate(chosen(spec, arms[-1]))


@pytest.mark.parametrize(
    ("batches", "k", "message"),
    [
        ({"batch_size": 100}, 10, "no candidate fits into batches.batch_size: 100"),
        ({"mixing": "across", "curriculum": ({"random_share": 1},)}, 32, "mixing is across"),
    ],
)
def test_nothing_to_choose_from_is_said(batches, k, message):
    mining = SPEC.mining.model_copy(update={"k": k})
    batches = BatchSpec.model_validate(batches)
    with pytest.raises(InputError, match=message):
        drawn(4, SPEC.model_copy(update={"mining": mining, "batches": batches}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([{"epochs": 3}], [{"epochs": 1}, {"epochs": 2, "refresh": True}]),
        (
            [{"epochs": 1, "random_share": 1}, {"epochs": 2}],
            [{"epochs": 1, "random_share": 1}, {"epochs": 2, "refresh": True}],
        ),
        (
            [{"epochs": 0.5, "random_share": 1}, {"epochs": 2.5}],
            [{"epochs": 0.5, "random_share": 1}, {"epochs": 0.5}, {"epochs": 2, "refresh": True}],
        ),
        ([{"epochs": 1}], None),
        ([{"epochs": 1}, {"epochs": 1, "random_share": 1}], None),
        ([{"epochs": 1}, {"epochs": 1, "refresh": True}], None),
    ],
)
def test_a_curriculum_mines_again_after_its_first_epoch(before, after):
    expected = after and BatchSpec(curriculum=tuple(Phase(**phase) for phase in after))
    assert refreshed(BatchSpec(curriculum=tuple(Phase(**phase) for phase in before))) == expected


@pytest.mark.parametrize(
    ("arms", "seeds", "expected"),
    [
        (12, 4, [(12, 1), (6, 2), (3, 4)]),
        (5, 3, [(5, 1), (3, 2), (2, 3)]),
        (2, 1, [(2, 1)]),
        (2, 4, [(2, 1), (2, 2), (2, 4)]),
    ],
)
def test_half_the_arms_on_twice_the_seeds(arms, seeds, expected):
    assert rounds(arms, seeds) == expected


def test_the_best_go_on_and_the_default_with_them():
    mrr = {"random": 0.9, "a": 0.1, DEFAULT: 0.2, "b": 0.4, "c": 0.3}
    table = [{"arm": arm, "mrr": value} for arm, value in mrr.items()]
    assert survivors(table, 3) == ["b", "c", DEFAULT]
    assert survivors(table, 2) == ["b", DEFAULT]
    assert survivors([row for row in table if row["arm"] != DEFAULT], 2) == ["b", "c"]


def test_a_trial_promotes_nobody_and_runs_no_benchmark():
    benchmark = BenchmarkSpec(name="coco", folder="/data/coco")
    dataset = SPEC.datasets[0].model_copy(update={"eval_uri": "/data/eval.parquet"})
    asked = SPEC.model_copy(
        update={
            "promote": PromoteSpec(),
            "evaluate": SPEC.evaluate.model_copy(update={"benchmarks": (benchmark,)}),
            "datasets": (dataset,),
        }
    )
    tried = trials_of(asked, held_in=True)
    assert (tried.promote, tried.evaluate.benchmarks) == (None, ())
    assert tried.datasets[0].eval_uri is None
    assert tried.evaluate.settings == asked.evaluate.settings  # trials are found again
    assert trials_of(asked, held_in=False).datasets == asked.datasets


@pytest.mark.parametrize("held_in", [True, False])
@pytest.mark.parametrize("kept_back", [0, 0.05, 0.2])
def test_what_a_run_reports_on_is_not_chosen_by(held_in, kept_back, tmp_path):
    pq.write_table(topic_table(400), tmp_path / "rows.parquet")
    dataset = SPEC.datasets[0].model_copy(
        update={"uri": str(tmp_path / "rows.parquet"), "query": "question", "positive": "answer"}
    )
    evaluate = SPEC.evaluate.model_copy(update={"kept_back": kept_back})
    asked = SPEC.model_copy(update={"datasets": (dataset,), "evaluate": evaluate})
    tried = trials_of(asked, held_in=held_in)
    run, trial = (read_split(spec.datasets[0], spec.evaluate) for spec in (asked, tried))

    def rows(table):
        return set(table.table["row_id"].to_pylist())

    assert len(trial.heldout) > 10
    assert not rows(run.heldout) & (rows(trial.heldout) | rows(trial.train))
    assert rows(trial.heldout) < rows(run.train)
    assert Pairs.of(dataset, asked.evaluate).address != Pairs.of(dataset, tried.evaluate).address


@given(
    st.integers(3, 3000),
    st.one_of(st.just(0.0), st.floats(0, 1, exclude_max=True)),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
@example(54, 0.05, 0.05)  # 3, and 3 of 51, are 6; 0.0975 of 54 are 5
@example(508, 0.2, 0.1)  # 102 and 41 are 143; 0.28 of 508 are 142
@example(10, 0.2, 0.01)  # a run holds out one at least, however small the share
@example(3, 0.0, 0.1)  # nothing is left for trials
@example(10, 0.0, 0.99)
@settings(max_examples=examples(300), deadline=None)
def test_trials_begin_where_a_run_ends_whatever_the_shares(groups, kept_back, holdout):
    evaluate = EvalSpec(kept_back=kept_back, holdout=holdout)
    asked = SPEC.model_copy(update={"evaluate": evaluate})
    run = held_out_part(groups, asked.evaluate, "x")
    judged = trials_of(asked, held_in=True).evaluate
    assert 0 <= run.start < run.stop <= groups - 2
    if groups - run.stop < 3:
        with pytest.raises(InputError, match=f"may use {groups - run.stop}: the others are for"):
            held_out_part(groups, judged, "x")
        return
    trial = held_out_part(groups, judged, "x")
    assert trial.start == run.stop
    assert trial.start < trial.stop <= groups - 2


def test_the_chosen_config_is_one():
    arm = drawn(2)[1]
    data = chosen(SPEC, arm)
    again = PipelineSpec.model_validate(data)
    assert (again.mining, again.batches) == SPEC.model_copy(update={"arms": (arm,)}).arm(arm.name)
    assert "train" not in data  # what is default is left out
