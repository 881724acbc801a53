"""What is called through a session ends before Ray does; no Ray is needed to see that."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from b3_core.calls import Calls
from b3_core.config import ComputeSpec
from b3_core.errors import B3Error, StoppedError
from b3_core.ray_session import ActorPool, RaySession, session
from b3_core.ray_train import Trainings

SOON = 5  # seconds: far below any time that Ray is waited for


class Here:
    """Ray as far as it is asked, with actors that are objects of this process."""

    exceptions = SimpleNamespace(RayActorError=ConnectionError, RayTaskError=ChildProcessError)
    util = SimpleNamespace()

    def __init__(self):
        self.at_end = None  # called when Ray ends

    def remote(self, **_):
        return lambda cls: SimpleNamespace(remote=lambda *args: Actor(cls(*args)))

    def get(self, value, timeout=None):
        return value

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "here")

    def shutdown(self):
        self.at_end()


class Actor:
    """The handle of an object whose methods return at once, but for ``never``."""

    def __init__(self, made):
        self._made = made

    def __getattr__(self, name):
        if name == "__ray_ready__":
            return SimpleNamespace(remote=lambda: Answer(None))
        if name == "never":
            return SimpleNamespace(remote=self._never)
        return SimpleNamespace(remote=getattr(self._made, name))

    def _never(self):
        self._made.asked += 1
        return Answer()


class Answer:
    """What Ray returns for a call: a value that is there, or none for ever."""

    def __init__(self, *value):
        self._future = Future()
        for each in value:
            self._future.set_result(each)

    def future(self):
        return self._future


class Silent:
    asked = 0


@pytest.fixture
def ray(monkeypatch):
    here = Here()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", here)
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return here


def soon(check):
    deadline = time.monotonic() + SOON
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_not_to_end_is_waited_for():
    calls = Calls()
    late = Future()
    threading.Timer(0.05, late.set_result, [None]).start()
    with calls.one():
        assert calls.wait_for(late)
        assert not calls.wait_for(Future(), 0.01)
    assert calls.end(0)


def test_the_end_waits_for_every_call_but_not_for_ever():
    calls = Calls()

    def call():
        with calls.one():
            calls.wait_for(Future())

    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(call) for _ in range(3)]
        soon(lambda: calls.under_way == 3)
        assert calls.end(SOON)
        for each in waiting:
            with pytest.raises(StoppedError, match="the same command goes on"):
                each.result(0)
    with pytest.raises(StoppedError):  # who comes late
        call()
    stuck = Calls()
    with stuck.one():
        assert not stuck.end(0.01)
    assert stuck.end(0)  # twice is once


@pytest.mark.parametrize("actors", [0, 1])
def test_who_waits_for_an_actor_or_for_its_answer_gives_up(ray, actors):
    """Three calls: with one actor two of them wait until it is free, without one all do."""
    silent = Silent()
    calls = Calls()
    pool = ActorPool([Actor(silent)] * actors, calls)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(pool.call, "never") for _ in range(3)]
        soon(lambda: calls.under_way == 3 and silent.asked == actors)
        assert calls.end(SOON)
        assert all(isinstance(each.exception(0), StoppedError) for each in waiting)
    assert silent.asked == actors  # by nobody for whom it was free then
    with pytest.raises(StoppedError):
        pool.call("never")


@pytest.mark.parametrize("joined", [True, False])
def test_ray_ends_after_all_who_ask_it(ray, monkeypatch, joined):
    """A flow's own session, or the one of the flow around it: its threads outlive the block."""
    monkeypatch.setattr(RaySession, "_open", lambda self: ray)
    silent, left = Silent(), []

    def teacher():
        return silent

    def shard(opened):
        opened.pool(teacher, most=1).call("never")

    def flow(around=None):
        with session(ComputeSpec(workers=1)) as opened:
            assert around in (None, opened)
            opened.started = True
            ray.at_end = lambda: left.append(opened._calls.under_way)
            waiting.extend(threads.submit(shard, opened) for _ in range(3))
            soon(lambda: opened._calls.under_way == 3 and silent.asked == 1)
            raise ValueError("a shard failed")

    waiting = []
    with ThreadPoolExecutor() as threads, pytest.raises(ValueError, match="a shard failed"):
        if joined:
            with session(ComputeSpec(workers=1)) as around:
                try:
                    flow(around)
                finally:
                    assert all(each.done() for each in waiting) and left == []
                    with pytest.raises(StoppedError):  # a task that only begins now
                        shard(around)
        else:
            flow()
    assert left == [0]
    assert all(isinstance(each.exception(0), StoppedError) for each in waiting)


class Threads:
    """Processes of trainings, as threads of this one."""

    def __init__(self):
        self.at_work = 0

    def call(self, method, function, handed):
        board = handed["board"]
        board.run.remote(True)
        self.at_work += 1
        try:
            handed["loop"](handed["config"], board.stopping.remote)
        except B3Error as error:
            return error
        finally:
            board.run.remote(False)
        return None


def test_a_failed_training_is_told_when_the_others_have_kept_their_step(ray):
    kept = []

    def loop(config, stopping):
        if config["fails"]:
            raise B3Error("a loss became infinite")
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            if stopping():
                kept.append(1)
                raise StoppedError("told to end")
            time.sleep(0.01)

    trainings = Trainings(ray, ComputeSpec(), "", calls=Calls(), processes=Threads())
    with pytest.raises(B3Error, match="a loss became infinite"):
        trainings.run(loop, [{"fails": False}, {"fails": True}, {"fails": False}], lambda *_: None)
    assert kept == [1, 1]


def test_ctrl_c_while_trainings_wait_for_their_processes(ray):
    calls = Calls()
    none_yet = ActorPool([], calls)

    def interrupt():
        soon(lambda: calls.under_way == 2)
        os.kill(os.getpid(), signal.SIGINT)

    before = set(threading.enumerate())
    threading.Thread(target=interrupt).start()
    trainings = Trainings(ray, ComputeSpec(), "", calls=calls, processes=none_yet)
    with pytest.raises(KeyboardInterrupt):
        trainings.run(lambda *_: None, [{}, {}], lambda *_: None)
    soon(lambda: not set(threading.enumerate()) - before)
