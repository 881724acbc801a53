"""Lists of close vectors, in one level and in two."""

import numpy as np
import pytest

from b3_core import lists
from b3_core.lists import find_lists

ROWS, WIDTH = 6000, 24


def vectors(seed=0, topics=300):
    """Unit vectors around some topics, which are around fewer."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=(12, WIDTH))[rng.integers(12, size=topics)]
    centre = wide + 0.7 * rng.normal(size=(topics, WIDTH))
    vector = centre[rng.integers(topics, size=ROWS)] + 0.3 * rng.normal(size=(ROWS, WIDTH))
    return (vector / np.linalg.norm(vector, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def in_two(monkeypatch):
    """Lists are found in two levels, however few they are; a row is compared with few groups."""
    monkeypatch.setattr(lists, "ONE_LEVEL", 8)
    monkeypatch.setattr(lists, "_AROUND", 4)


def found(vector, count=200):
    return find_lists(lambda at: vector[at], rows=len(vector), lists=count)


def closeness(vector, centre, list_N):
    """Mean score of a row and the centre of its list."""
    return float((vector * centre[list_N]).sum(axis=1).mean())


def test_in_one_level_every_row_is_in_the_nearest_list():
    vector = vectors()
    centre, list_N = found(vector)
    assert np.array_equal(list_N, np.argmax(vector @ centre.T, axis=1))


def test_in_two_levels_nearly_every_row_is(in_two):
    vector = vectors()
    centre, list_N = found(vector)
    assert 180 <= len(centre) <= 220
    nearest_N = np.argmax(vector @ centre.T, axis=1)
    assert 0.97 < (list_N == nearest_N).mean() < 1.0


def test_two_levels_are_about_as_close_as_one(monkeypatch, in_two):
    vector = vectors()
    two = closeness(vector, *found(vector))
    monkeypatch.setattr(lists, "ONE_LEVEL", 1 << 30)
    one = closeness(vector, *found(vector))
    shuffled = np.random.default_rng(0).permutation(ROWS)
    centre, list_N = found(vector)
    assert closeness(vector, centre, list_N[shuffled]) < one - 0.3
    assert abs(two - one) < 0.02


def test_blocks_change_nothing_and_seeds_are_fixed(monkeypatch, in_two):
    vector = vectors()
    centre, list_N = found(vector)
    monkeypatch.setattr(lists, "_BLOCK", 700)
    same, placed = found(vector)
    assert np.array_equal(centre, same) and np.array_equal(list_N, placed)


@pytest.mark.parametrize("rows", [9, 40])
def test_fewer_rows_than_lists_and_rows_that_are_all_alike(in_two, rows):
    alike = np.repeat(vectors()[:1], rows, axis=0)
    centre, list_N = found(alike, count=rows)
    assert np.isfinite(centre).all() and list_N.max() < len(centre)
    few, placed = found(vectors()[:rows], count=rows)
    assert placed.max() < len(few)
