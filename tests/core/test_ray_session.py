"""How many actors a session asks for, and when they are leased."""

import contextlib

import pytest

from b3_core.config import ComputeSpec
from b3_core.errors import InputError
from b3_core.ray_session import ActorPool, RaySession


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
    assert session._fitting(cpus, gpus) == fit


class Machine:
    """Ray as far as a session asks it how many GPUs there are."""

    def __init__(self, gpus):
        self.gpus = gpus

    def cluster_resources(self):
        return {"CPU": 3.0} | ({"GPU": float(self.gpus)} if self.gpus else {})


@pytest.mark.parametrize(
    ("share", "gpus", "workers", "fit"),
    [(0, 0, 4, True), (1, 0, 1, False), (0.5, 1, 2, True), (0.5, 1, 3, False)],
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, share, gpus, workers, fit):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    session = RaySession(ComputeSpec(gpus_per_worker=share))
    with contextlib.nullcontext() if fit else pytest.raises(InputError, match=f"GPUs: {gpus}"):
        session._check_gpus(Machine(gpus), workers)
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # where nodes may come
    session._check_gpus(Machine(gpus), workers)


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
