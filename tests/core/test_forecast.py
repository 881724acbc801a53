"""A forecast: exact where timings follow its model, monotone, and nothing for what is done."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from b3_core.config import parse_config
from b3_core.dataset_stage import Pairs, PairsRef
from b3_core.errors import InputError
from b3_core.forecast import measure
from b3_core.forecast.jobs import KINDS, Job, Rows, jobs_of
from b3_core.forecast.machine import Machine, read_prices
from b3_core.forecast.measure import Measured, Prober, Spread
from b3_core.forecast.past import timings_of
from b3_core.forecast.predict import Basis, predict
from b3_core.forecast.probe_mining import tiled
from b3_core.forecast.probing import stretched
from b3_core.forecast.rates import Timing, fit, fit_all
from b3_core.forecast.sample import Sample, draw, for_training, rows_of
from b3_core.forecast.sizes import Widths
from b3_core.forecast.whole import Settings, _refused, forecast
from b3_core.graph import CsrGraph
from b3_core.plan import Plan
from b3_core.stage import Past
from b3_core.store import ArtifactStore
from b3_core.teacher import Embeddings
from tests.conftest import examples, topic_table

WIDTHS = Widths(dim=256, ranks=146, window=100, text_bytes=500)
ALONE = Spread(workers=1, jobs=1, evaluations=1)
HERE = Machine(cpus=2, memory_gb=8, disk_gb=100)


@pytest.fixture
def spec(dataset, tmp_path):
    columns = {"query": "question", "positive": "answer"}
    return parse_config(
        {
            "datasets": [{"name": "faq", "uri": str(dataset), **columns}],
            "mining": {"p": 2, "m": 20, "k": 8},
            "batches": {"batch_size": 32},
            "train": {"student": "static", "dim": 32},
            "arms": ["random", "paper", "b3"],
            "seeds": [0, 1],
            "store": {"root": str(tmp_path / "store")},
        },
        base=tmp_path,
    )


def planned(spec):
    store = ArtifactStore(spec.store.root)
    refs = [PairsRef.of(d, Pairs.of(d, spec.evaluate).run(store)) for d in spec.datasets]
    return store, Plan.of(spec, refs, store)


def put_shards(plan, store):
    """Shards as if a teacher had made them."""
    for vectors in plan.legs[0].vectors:
        for shard in vectors.shards:
            drawn = np.random.default_rng(shard.start).standard_normal(
                (shard.stop - shard.start, 16)
            )
            unit = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
            with store.draft(shard.address, lineage=shard.inputs, settings={}) as draft:
                Embeddings(unit, unit).save(draft)


positive = st.floats(1e-6, 1e-2)


@given(
    once=st.floats(0.01, 10),
    rows=positive,
    square=st.floats(1e-10, 1e-7),
    start=st.floats(0, 30),
    sizes=st.lists(st.integers(500, 50_000), min_size=3, max_size=6, unique=True),
)
def test_timings_that_follow_the_model_are_predicted_exactly(once, rows, square, start, sizes):
    def work(n):
        return {"once": 1.0, "rows": float(n), "square": float(n) ** 2}

    def seconds(n):
        return once + rows * n + square * n * n

    timings = [Timing("ranks", "k", work(n), seconds(n)) for n in sizes]
    first = Timing("ranks", "k", work(sizes[0]), seconds(sizes[0]) + start, cold=True)
    rate = fit([first, *timings])
    for n in (*sizes, 2 * max(sizes)):
        assert rate.seconds(work(n)) == pytest.approx(seconds(n), rel=1e-3, abs=1e-3)
    assert rate.start == pytest.approx(start, abs=1e-2 + 1e-3 * seconds(sizes[0]))
    assert rate.seconds(work(10), cold=True) == pytest.approx(rate.seconds(work(10)) + rate.start)


@given(
    noise=st.lists(st.floats(0.3, 3), min_size=2, max_size=6),
    n=st.integers(1, 10**6),
    more=st.integers(0, 10**6),
)
def test_more_rows_never_take_less_whatever_was_timed(noise, n, more):
    timings = [
        Timing("graph", "k", {"once": 1.0, "rows": 1000.0 * (i + 1)}, factor * (i + 1))
        for i, factor in enumerate(noise)
    ]
    rate = fit(timings)
    few, many = ({"once": 1.0, "rows": float(rows)} for rows in (n, n + more))
    assert 0 <= rate.seconds(few) <= rate.seconds(many)
    assert rate.seconds({"once": 1.0, "rows": 1e7}) > 0


def test_one_timing_is_scaled_by_the_work():
    rate = fit([Timing("student", "k", {"once": 1.0, "steps": 100.0}, 20.0, source="records")])
    assert rate.seconds({"once": 1.0, "steps": 300.0}) == pytest.approx(60)
    with pytest.raises(ValueError, match="nothing was timed"):
        fit([])


def test_parts_timed_apart_add_up():
    timings = [
        Timing("evaluation", "k", {"once": 1.0}, 2.0),
        Timing("evaluation", "k", {"texts": 1000.0}, 3.0),
        Timing("evaluation", "k", {"scores": 1e6}, 5.0),
    ]
    whole = {"once": 1.0, "texts": 2000.0, "scores": 4e6}
    assert fit(timings).seconds(whole) == pytest.approx(2 + 6 + 20)


def test_disk_is_that_of_whole_artifacts_not_of_parts_timed_apart():
    part = Timing("ranks", "k", {"square": 1e12}, 9.0)
    whole = Timing("ranks", "k", dict(ranks_of(1000.0).work), 1.0, peak_mb=300.0, bytes=10**6)
    totals = {"faq": Rows(5000, 100)}
    (stage,) = forecast_of([ranks_of(5000.0)], {"k": fit([part, whole])}, totals).stages
    assert stage.disk_gb == pytest.approx(5e-3)


def test_jobs_are_the_plans_stages_with_the_datas_rows(spec):
    store, plan = planned(spec)
    rows = plan.legs[0].vectors[0].ref.rows
    jobs = jobs_of(plan, spec, {"faq": Rows(rows, 30)}, store)
    count = {kind: sum(job.kind == kind for job in jobs) for kind in KINDS}
    assert count == {
        **{"pairs": 0, "shards": 1, "embeddings": 1, "ranks": 1, "graph": 1},
        **{"communities": 6, "manifest": 6, "student": 6, "evaluation": 6, "results": 1},
    }
    assert not any(job.done for job in jobs)
    # Seeds share what they cost, arms do not.
    assert len({job.key for job in jobs if job.kind == "communities"}) == 3
    steps = {job.work["steps"] for job in jobs if job.kind == "student"}
    assert steps == {3 * (rows // 32)}
    larger = jobs_of(plan, spec, {"faq": Rows(10 * rows, 30)}, None)
    shards = [each.work["rows"] for each in (jobs[0], larger[0])]
    assert shards == pytest.approx([rows, 10 * rows])


def test_what_the_store_holds_is_done_and_costs_nothing(spec):
    store, plan = planned(spec)
    totals = {"faq": rows_of(spec.datasets[0], spec, store)}
    put_shards(plan, store)
    jobs = jobs_of(plan, spec, totals, store)
    assert [job.kind for job in jobs if job.done] == ["shards"]
    rates = fit_all(Timing(job.kind, job.key, dict(job.work), 1.0, peak_mb=100.0) for job in jobs)
    made = forecast_of(jobs, rates, totals)
    by = {stage.stage: stage for stage in made.stages}
    assert (by["shards"].work_seconds, by["shards"].basis) == (0, "done")
    assert by["embeddings"].work_seconds == pytest.approx(1)
    assert by["communities"].work_seconds == pytest.approx(6)
    assert made.seconds == pytest.approx(sum(stage.seconds for stage in made.stages))


def forecast_of(jobs, rates, totals, *, spread=ALONE, machine=HERE, starts=None):
    kinds = {job.key: job.kind for job in jobs}
    return predict(jobs, Basis(rates, kinds, totals, WIDTHS, spread, machine, starts or {}))


def ranks_of(rows, *, key="k"):
    return Job("ranks", key, "faq", {"once": 1.0, "rows": rows, "square": rows**2}, False)


@settings(max_examples=examples(30))
@given(st.lists(st.integers(1000, 10**7), min_size=2, max_size=5, unique=True))
def test_time_memory_and_disk_grow_with_rows(sizes):
    timing = Timing("ranks", "k", dict(ranks_of(1000.0).work), 1.0, peak_mb=300.0, bytes=10**6)
    found = []
    for rows in (*sorted(sizes), 10 * max(sizes)):
        totals = {"faq": Rows(rows, 100)}
        (stage,) = forecast_of([ranks_of(float(rows))], {"k": fit([timing])}, totals).stages
        found.append((stage.work_seconds, stage.memory_gb, stage.disk_gb))
    for less, more in zip(found, found[1:], strict=False):
        assert all(a <= b for a, b in zip(less, more, strict=True))
    assert all(a < b for a, b in zip(found[0], found[-1], strict=True))


def test_what_does_not_fit_is_said_with_what_to_do():
    timing = Timing("ranks", "k", dict(ranks_of(1000.0).work), 1.0, peak_mb=300.0, bytes=10**6)
    totals = {"faq": Rows(3_000_000, 100)}
    made = forecast_of([ranks_of(3e6)], {"k": fit([timing])}, totals)
    assert not made.fits
    (said,) = made.problems
    assert (
        said.startswith("ranks: 1") and "GB of 8.0 GB: does not fit; set mining.cell_rows" in said
    )
    small = replace(HERE, memory_gb=64, disk_gb=1)
    made = forecast_of([ranks_of(3e6)], {"k": fit([timing])}, totals, machine=small)
    assert made.problems == [
        "disk: 3.0 GB of 1.0 GB free: does not fit; set store.root to another disk or a bucket"
    ]
    json.dumps(made.to_json())


def test_a_static_student_is_not_told_to_cut_its_batches():
    job = Job("student", "k", "faq", {"once": 1.0, "steps": 9.0}, False)
    timing = Timing("student", "k", dict(job.work), 1.0, peak_mb=9000.0)
    (said,) = forecast_of([job], {"k": fit([timing])}, {"faq": Rows(1000, 9)}).problems
    assert "set compute.workers or batches.batch_size lower, or train.chunk_rows unless" in said


def test_processes_side_by_side_share_the_time_and_add_up_in_memory():
    job = Job("shards", "k", "faq", {"once": 1.0, "rows": 100_000.0}, False)
    rate = {"k": fit([Timing("shards", "k", {"once": 1.0, "rows": 1000.0}, 1.0, peak_mb=1000.0)])}
    totals = {"faq": Rows(100_000, 1)}
    starts = {"ray": 7.0, "actors": 2.0, "teacher": 3.0}
    one, four = (
        forecast_of([job], rate, totals, spread=Spread(n, 1, 1), starts=starts) for n in (1, 4)
    )
    assert one.stages[0].work_seconds == four.stages[0].work_seconds == pytest.approx(100)
    assert one.stages[0].seconds == pytest.approx(105) and one.seconds == pytest.approx(112)
    assert four.stages[0].seconds == pytest.approx(30)
    assert four.stages[0].memory_gb > 3 * one.stages[0].memory_gb - 2


def share_of(spec, share, student="static", **compute):
    return spec.model_copy(
        update={
            "compute": spec.compute.model_copy(update={"gpus_per_worker": share, **compute}),
            "train": spec.train.model_copy(update={"student": student}),
        }
    )


@pytest.mark.parametrize(
    ("share", "student", "gpus", "compute", "spread"),
    [
        (0, "static", 2, {}, Spread(8, 6, 8, 1)),
        (0, "/bert", 2, {}, Spread(8, 1, 4, 2)),
        (1, "/bert", 2, {}, Spread(2, 2, 2, 1, gpus=2)),
        (1, "/bert", 2, {"train_workers": 2}, Spread(2, 1, 2, 1, gpus=2)),
        (1, "/bert", 4, {"workers": 2, "train_workers": 2}, Spread(2, 2, 2, 1, gpus=4)),
        (0.6, "/bert", 2, {}, Spread(2, 2, 2, 1, gpus=2)),  # a share is of one GPU
        (1, "/bert", 2, {"workers": 4}, Spread(2, 2, 2, 1, gpus=2)),
        (1, "static", 2, {}, Spread(2, 6, 8, 1, gpus=2)),  # a small student stays on the CPU
        (1, "/bert", 0, {}, Spread(1, 1, 1, 1)),
    ],
)
def test_processes_at_once_are_those_of_a_session(spec, share, student, gpus, compute, spread):
    asked = share_of(spec, share, student, **compute)
    assert Spread.of(asked, cpus=8, students=6, gpus=gpus) == spread


def test_a_flow_keeps_so_many_tasks_going_and_no_more(spec):
    spread = Spread.of(share_of(spec, 0, "static"), cpus=100, students=6)
    assert (spread.workers, spread.jobs, spread.evaluations) == (32, 6, 32)


@pytest.mark.parametrize(
    ("share", "student", "seen", "expected"),
    [
        (0, "static", None, {"embed": "", "train": "", "evaluate": "", "mine": None}),
        (0, "/bert", "0,1", {"embed": "", "train": "", "evaluate": "", "mine": "0,1"}),
        (1, "static", None, {"embed": "1", "train": "", "evaluate": "", "mine": None}),
        (1, "/bert", "4,7", {"embed": "7", "train": "7", "evaluate": "7", "mine": "4,7"}),
    ],
)
def test_a_probe_sees_the_gpus_that_the_run_would(
    spec, monkeypatch, share, student, seen, expected
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    asked = share_of(spec, share, student)
    spread = Spread.of(asked, cpus=2, students=1, gpus=2)
    prober = Prober(Sample(asked, {}), Path(), {}, spread)
    environments = {
        kind: prober._environment(kind, 1, None if kind == "mine" else 1) for kind in expected
    }
    found = {kind: each.get("CUDA_VISIBLE_DEVICES") for kind, each in environments.items()}
    assert found == expected


@pytest.mark.parametrize(
    ("share", "said", "gpus", "fits"),
    [(0, 0, 0, True), (1, 0, 3, True), (1, 2, 2, True), (4, 0, 3, False), (4, 4, 4, True)],
)
def test_gpus_are_counted_where_they_are_wanted(spec, monkeypatch, share, said, gpus, fits):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    spreads = []

    def measure(prober, jobs, progress):
        spreads.append(prober.spread)
        return Measured(starts={"ray": 1.0})

    monkeypatch.setattr(Prober, "measure", measure)
    made = forecast(share_of(spec, share), Settings(replace(HERE, gpus=said)))
    assert made.machine.gpus == gpus and made.fits == fits
    assert [each.gpus for each in spreads] == [3 if share else 0]  # probes run here


@pytest.mark.parametrize(
    ("share", "student", "said", "trainers", "problems"),
    [
        (1, "static", 0, 1, ["1 x compute.gpus_per_worker = 1 do not fit .* GPUs: 0; .*RAY_ADD"]),
        (1, "/bert", 0, 1, ["1 x compute.gpus_per_worker = 1 do not fit .* GPUs: 0; .*RAY_ADD"]),
        (1, "/bert", 1, 2, ["2 x compute.gpus_per_worker = 1 do not fit .* GPUs: 1; .*RAY_ADD"]),
        (1, "static", 1, 2, []),
        (0.5, "/bert", 1, 2, ["would have trainers share a GPU"]),
        (0, "/bert", 0, 2, []),
    ],
)
def test_a_run_that_would_be_refused_for_want_of_gpus_does_not_fit(
    spec, monkeypatch, share, student, said, trainers, problems
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    asked = share_of(spec, share, student, train_workers=trainers)
    jobs = [Job(kind, kind, "faq", {}, False) for kind in ("shards", "student", "evaluation")]
    found = _refused(asked, jobs, said)
    assert len(found) == len(problems)
    assert all(re.search(*both) for both in zip(problems, found, strict=True)), found
    made = replace(forecast_of([], {}, {}), refused=found)
    assert made.problems == found and made.fits == (not found)
    # What is done asks for nothing, and to a cluster nodes may come.
    assert not _refused(asked, [replace(job, done=True) for job in jobs], said)
    if share == 1:
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        assert not _refused(asked, jobs, said)


@pytest.mark.parametrize(
    ("rows", "student", "trainers", "embedding", "warm"),
    [
        (1000, "static", 1, 1, True),
        (4096, "static", 1, 1, True),
        (4097, "static", 1, 2, False),
        (10**6, "static", 1, 2, False),
        (1000, "/bert", 1, 1, False),
        (1000, "static", 2, 1, False),
    ],
)
def test_small_data_is_probed_by_as_few_processes_as_a_run_of_it_has(
    spec, monkeypatch, rows, student, trainers, embedding, warm
):
    monkeypatch.setattr(measure, "cores", lambda: 2)
    asked = share_of(spec, 0, student, train_workers=trainers)
    spread = Spread.of(asked, cpus=2, students=2)
    prober = Prober(Sample(asked, {}), Path(), {"faq": Rows(rows, 10)}, spread)
    assert (prober._embedding, prober._warm) == (embedding, warm)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_what_small_data_is_probed_by(spec, monkeypatch, tmp_path, cached):
    if not cached:
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    kinds, run = [], subprocess.run

    def spied(command, **settings):
        if "b3_core.forecast.probe" in command:
            kinds.append(command[3])
        return run(command, **settings)

    monkeypatch.setattr(subprocess, "run", spied)
    students = ("student", "evaluation") if cached else ()
    sample = draw(spec, tmp_path / "sample", rows=600)
    prober = Prober(sample, tmp_path / "probes", {"faq": Rows(570, 30)}, ALONE, 1.0)
    prober.folder.mkdir()
    jobs = [Job(kind, kind, "faq", {"steps": 20}, False) for kind in ("shards", "ranks", *students)]
    found = prober.measure(jobs)
    # Compiling is not timed, so that what was compiled is mined again.
    mined = ["mine"] if cached else ["mine", "mine"]
    assert kinds == ["embed", *mined, *(["train"] if students else []), "start"]
    assert {each.kind for each in found.timings} == {
        *("pairs", "shards", "embeddings", "ranks", "graph", "communities", "manifest", *students)
    }
    warm = [each.seconds for each in found.timings if each.kind == "graph" and not each.cold]
    assert warm and max(warm) < 1


def test_money_is_the_clock_times_what_the_machine_costs():
    machine = Machine(4, 8, 100, gpus=2, prices=read_prices(["cpu-hour=0.05", "gpu-hour=2.5"]))
    assert machine.money(3600) == pytest.approx(4 * 0.05 + 2 * 2.5)
    assert HERE.money(3600) is None
    for bad in ("gpu-hour", "gpu-hour=", "gpu-hour=-1", "tea=1", "gpu-hour=nan", "gpu-hour=1e3"):
        with pytest.raises(InputError, match="cannot be read.*cpu-hour=NUMBER"):
            read_prices([bad])


def test_records_of_the_same_stages_are_timings(spec):
    store, plan = planned(spec)
    put_shards(plan, store)
    for stage in (*plan.legs[0].vectors, *plan.legs[0].ranks, *plan.legs[0].graphs):
        stage.run(store)
    before = {stage.name: store.get(stage.address).record for stage in plan.legs[0].ranks}
    # The data grows by half: the same stages with other inputs.
    pq.write_table(topic_table(900, seed=3), spec.datasets[0].uri)
    store, grown = planned(spec)
    totals = {"faq": rows_of(spec.datasets[0], spec, store)}
    jobs = jobs_of(grown, spec, totals, store)
    works = {job.key: (job.kind, job.work) for job in jobs}
    found = {each.kind: each for each in timings_of(grown, works, Past(store))}
    assert set(found) == {"embeddings", "ranks", "graph"}
    ranks = found["ranks"]
    assert ranks.seconds == before["ranks"]["seconds"] and ranks.source == "records"
    was = plan.legs[0].vectors[0].ref.rows
    assert ranks.work["rows"] == pytest.approx(was)
    assert ranks.work["square"] == pytest.approx(was**2)
    # Of four times the rows such a record says too little.
    pq.write_table(topic_table(2500, seed=4), spec.datasets[0].uri)
    store, large = planned(spec)
    totals = {"faq": rows_of(spec.datasets[0], spec, store)}
    works = {job.key: (job.kind, job.work) for job in jobs_of(large, spec, totals, store)}
    assert not timings_of(large, works, Past(store))


def test_a_sample_is_drawn_evenly_and_planned_as_config_is(spec, tmp_path):
    sample = draw(spec, tmp_path / "sample", rows=200)
    assert 100 <= sample.rows["faq"] <= 200
    cut = sample.cut(tmp_path / "cut", 150)
    _, plan = planned(cut)
    whole = {job.key for job in jobs_of(planned(spec)[1], spec, {"faq": Rows(9, 9)}, None)}
    part = {job.key for job in jobs_of(plan, cut, {"faq": Rows(9, 9)}, None)}
    assert part == whole
    trained = for_training(sample.cut(tmp_path / "train", 150), rows=150, epochs=2)
    _, plan = planned(trained)
    (student,) = [
        job for job in jobs_of(plan, trained, {"faq": Rows(64, 9)}, None) if (job.kind == "student")
    ]
    assert student.key in whole and student.work["steps"] == 4


def test_stretched_vectors_are_the_known_ones_and_others_near_them():
    rng = np.random.default_rng(0)
    known = rng.standard_normal((50, 64)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    found = stretched(known, np.arange(120))
    assert (found[:50] == known).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    own = (found[50:100] * known).sum(axis=1)
    assert (own > 0.7).all() and (own < 0.99).all()


def test_a_tiled_graph_is_copies_of_one_that_touch_nowhere():
    rng = np.random.default_rng(3)
    dense = np.triu(rng.random((40, 40)) < 0.2, 1) * rng.random((40, 40)).astype(np.float32)
    one = CsrGraph.of(csr_array(dense + dense.T))
    order = rng.permutation(120).astype(np.int32)
    whole = tiled(one, order).to_scipy().toarray()
    expected = np.zeros_like(whole)
    for copy in range(3):
        own = order[40 * copy : 40 * (copy + 1)]
        expected[np.ix_(own, own)] = one.to_scipy().toarray()
    assert np.array_equal(whole, expected)
