"""How many actors a session asks for, and when they are leased."""

import contextlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from b3_core import ray_session
from b3_core.config import ComputeSpec
from b3_core.errors import InputError
from b3_core.ray_session import ActorPool, RaySession
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("share", "cpus", "gpus", "fit"),
    [
        (0, 3, 0, 3),
        (1, 2, 8, 2),  # each takes a core besides
        (0.25, 64, 2, 8),
        (0.1, 64, 1, 10),
        (0.6, 64, 2, 2),  # a share is of one GPU: what is left of two is no third
        (2, 64, 5, 2),
        (1, 64, 0, 0),
    ],
)
def test_actors_are_as_many_as_a_node_has_room_for(share, cpus, gpus, fit):
    session = RaySession(ComputeSpec(gpus_per_worker=share))
    assert session.fitting(cpus, gpus) == fit


@pytest.mark.parametrize(
    ("slim", "compute", "gpus", "jobs"),
    [
        (True, {}, 0, 4),  # a core each
        (True, {"workers": 3}, 0, 3),
        (True, {"train_workers": 2}, 0, 1),
        (True, {"gpus_per_worker": 1}, 2, 4),  # they have no use for it
        (False, {}, 0, 1),  # all cores
        (False, {"gpus_per_worker": 1}, 2, 2),
        (False, {"gpus_per_worker": 0.25}, 1, 4),
        (False, {"gpus_per_worker": 0.25}, 2, 6),  # no more students
        (False, {"gpus_per_worker": 0.25, "workers": 3}, 1, 3),
        (False, {"gpus_per_worker": 0.5, "workers": 9}, 1, 2),
        (False, {"gpus_per_worker": 1, "train_workers": 2}, 5, 2),
        (False, {"gpus_per_worker": 1, "train_workers": 8}, 5, 1),  # refused where it is trained
    ],
)
def test_trainings_at_once_are_as_many_as_there_is_room_for(monkeypatch, slim, compute, gpus, jobs):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_session, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert RaySession(ComputeSpec(**compute)).side_by_side(6, slim=slim) == jobs


@pytest.mark.parametrize(("slim", "trainers", "jobs"), [(True, 1, 1), (False, 1, 5), (False, 2, 2)])
def test_a_cluster_trains_on_the_gpus_of_all_its_nodes(monkeypatch, slim, trainers, jobs):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(RaySession, "_open", lambda self: None)
    nodes = [{"CPU": 8.0, "GPU": gpus} for gpus in (2.0, 3.0)] + [{"CPU": 8.0}]
    alive = [{"Alive": True, "Resources": each} for each in nodes]
    known = [*alive, {"Alive": False, "Resources": {"GPU": 8}}]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: known))
    compute = ComputeSpec(gpus_per_worker=1, train_workers=trainers)
    assert RaySession(compute).side_by_side(6, slim=slim) == jobs


@pytest.mark.parametrize(
    ("share", "gpus", "workers", "fit"),
    [(0, 0, 4, True), (1, 0, 1, False), (0.5, 1, 2, True), (0.5, 1, 3, False)],
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, share, gpus, workers, fit):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    session = RaySession(ComputeSpec(gpus_per_worker=share))
    with contextlib.nullcontext() if fit else pytest.raises(InputError, match=f"GPUs: {gpus}"):
        session.check_gpus(gpus, workers)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # where nodes may come
    session.check_gpus(gpus, workers)


@pytest.mark.parametrize(
    ("share", "gpus", "trainers", "said"),
    [
        (0.5, 1, 1, None),
        (0.5, 2, 2, "would have trainers share a GPU"),  # and fit: Ray puts both onto the first
        (1, 2, 2, None),
        (1, 2, 3, "do not fit this machine's GPUs: 2"),
        (0, 0, 2, None),
    ],
)
def test_trainers_have_whole_gpus(monkeypatch, share, gpus, trainers, said):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    session = RaySession(ComputeSpec(gpus_per_worker=share, train_workers=trainers))
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        session.check_trainers(gpus)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_training_checks_its_gpus_if_it_uses_them(monkeypatch, gpu):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 3.0, "GPU": 1.0})
    ran = []
    monkeypatch.setattr(RaySession, "_open", lambda self: ray)
    monkeypatch.setattr(
        ray_session,
        "Trainings",
        lambda _, compute, *__, **___: SimpleNamespace(run=lambda *_: ran.append(compute)),
    )
    session = RaySession(ComputeSpec(gpus_per_worker=0.5, train_workers=2))
    with pytest.raises(InputError, match="share a GPU") if gpu else contextlib.nullcontext():
        session.train(None, [], storage="", gpu=gpu)
    assert [each.gpus_per_worker for each in ran] == ([] if gpu else [0])


class Placed:
    """An actor's handle as far as a pool looks, and when Ray finds a place for it."""

    def __init__(self):
        self.callbacks = []
        self.__ray_ready__ = self

    def remote(self):
        return self

    def future(self):
        return self

    def add_done_callback(self, callback):
        self.callbacks.append(callback)


def test_an_actor_without_a_place_is_not_leased():
    actors = [Placed(), Placed(), Placed()]
    pool = ActorPool(actors)
    assert pool.size == 3 and pool._free.empty()
    actors[1].callbacks[0](None)
    assert pool._free.get_nowait() is actors[1] and pool._free.empty()


def test_a_pool_that_is_gone_keeps_no_actor():
    actor = Placed()
    ActorPool([actor])
    actor.callbacks[0](None)  # a late answer changes nothing


@pytest.mark.parametrize(("most", "size"), [(None, 3), (2, 2), (9, 3)])
def test_a_pool_is_no_larger_than_its_work(monkeypatch, most, size):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    actors = SimpleNamespace(remote=lambda *_: Placed())
    ray = SimpleNamespace(remote=lambda **_: lambda cls: actors)
    monkeypatch.setattr(RaySession, "_open", lambda self: ray)
    session = RaySession(ComputeSpec(workers=3))
    pool = session.pool(object, most=most)
    assert pool.size == size
    assert session.pool(object, most=1) is pool


@pytest.mark.slow
def test_small_trainings_share_warm_processes_and_outlive_their_ends(tmp_path):
    """In a process of its own: Ray reads its settings where it is imported first."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.warm", str(tmp_path)],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    tries = {each["what"]: each["tries"] for each in said}  # other lines are Ray's
    # Two processes for four trainings; one may have been slow to start.
    assert len({process for job in tries["first"] + tries["again"] for process in job}) <= 2
    assert len(set(tries["told"][0])) == 2  # told to end it did, and another went on
    assert len(set(tries["killed"][0])) == 3
    assert len(tries["orphaned"][0]) == 1
    assert len(tries["InputError: no; none"][0]) == 1
    assert len(tries["B3Error: a training's process died 3 times"][0]) == 3
    assert len(set(tries["alone"][0])) == 3  # of the only process each death counts once
