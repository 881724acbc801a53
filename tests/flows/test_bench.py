"""Measurements as a person sees them: a table and the machine."""

import pytest


@pytest.mark.slow  # five methods, each in a process of its own
def test_bench_neighbours_prints_a_row_a_method(command):
    sizes = ("--rows", "1000", "--dim", "8", "--k", "9", "--repeats", "1")
    code, out, err = command("bench", "neighbours", *sizes)
    assert code == 0, err
    for word in ("method", "exact", "faiss", "hnsw", "CPUs"):
        assert word in out
