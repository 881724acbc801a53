import ctypes
import threading

import numba
import numpy as np
import pytest

from b3_core import metis
from b3_core.communities import find_communities
from b3_core.config import MiningSpec
from tests.core.test_communities import random_graph

_rand = ctypes.CDLL(None).rand
_rand.argtypes, _rand.restype = [], ctypes.c_int


@numba.njit(nogil=True)
def draw_elsewhere(times):
    for _ in range(times):
        _rand()


@pytest.fixture
def busy_rand():
    """A thread draws from the C library's generator, as threads of Ray do now and then."""
    draw_elsewhere(1)  # compiled before the test begins
    ended = threading.Event()

    def draw():
        while not ended.is_set():
            draw_elsewhere(10_000_000)

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.mark.parametrize("name", ["metis-paper", pytest.param("metis", marks=pytest.mark.slow)])
def test_parts_are_the_same_whatever_else_this_process_draws(name, busy_rand):
    graph, spec = random_graph(0, rows=2000, edges=20_000), MiningSpec(k=16, partitioner=name)
    one, same = (find_communities(graph, spec, rng=np.random.default_rng(0)) for _ in range(2))
    assert (one == same).all()


def test_a_process_that_fails_says_why():
    indptr, indices, weight_E = (np.array(values) for values in ([0, 1, 2], [1, 0], [1, 1]))
    with pytest.raises(RuntimeError, match=r"exit code 1: RuntimeError"):
        metis.part_graph(indptr, indices, weight_E, parts=0)
