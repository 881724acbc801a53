import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b3_core.balance import balance, objective
from b3_core.communities import community_sizes
from b3_core.config import MiningSpec
from b3_core.mend import OPEN_SHARE, mend
from tests.conftest import examples
from tests.core.test_communities import graph_of, random_graph


def sets(label_N, name_N):
    """Return communities as sets of names."""
    return {frozenset(name_N[label_N == c].tolist()) for c in np.unique(label_N)}


def brute_touched(then_O, before_N, label_N):
    then = sets(then_O, np.arange(len(then_O)))
    name_N = np.where(before_N < 0, -1 - np.arange(len(before_N)), before_N)
    return len(sets(label_N, name_N) - then)


@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(4, 90),
    gone=st.integers(0, 30),
    fresh=st.integers(0, 30),
    k=st.integers(2, 12),
    repulsion=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=examples(200), deadline=None)
def test_sizes_are_exact_and_figures_true_whatever_came_and_went(
    seed, rows, gone, fresh, k, repulsion
):
    rng = np.random.default_rng(seed)
    sizes = community_sizes(rows, k)
    then_O = rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
    stay = np.sort(rng.choice(rows, max(rows - gone, 1), replace=False))
    before_N = rng.permutation(np.concatenate([stay, np.full(fresh, -1)]))
    now = len(before_N)
    attract, repel = random_graph(seed, now, 3 * now), random_graph(seed + 1, now, now)
    spec = MiningSpec(k=k, repulsion=repulsion)
    mended = mend(
        then_O,
        before_N,
        edited_N=np.zeros(len(before_N), bool),
        attract=attract,
        repel=repel,
        group_N=rng.integers(0, now, now).astype(np.int32),
        spec=spec,
        rng=rng,
    )
    label_N = mended.partition.label_N  # Partition has checked the sizes
    assert mended.touched == brute_touched(then_O, before_N, label_N)
    assert mended.partition.objective == pytest.approx(
        objective(label_N, attract, repel, repulsion=repulsion)
    )


@pytest.mark.parametrize("rows", [320, 300])
def test_nothing_changed_nothing_touched(rows):
    graph, spec = random_graph(0, rows), MiningSpec(k=16)
    given = {"attract": graph, "repel": None, "group_N": np.arange(rows, dtype=np.int32)}
    then = balance(
        np.arange(rows, dtype=np.int32) // 16, **given, spec=spec, rng=np.random.default_rng(0)
    )
    mended = mend(
        then.label_N,
        np.arange(rows),
        edited_N=np.zeros(rows, bool),
        **given,
        spec=spec,
        rng=np.random.default_rng(1),
    )
    assert mended.touched <= 1  # that of the remainder is open, since it is not full
    assert sets(mended.partition.label_N, np.arange(rows)) == sets(then.label_N, np.arange(rows))


def test_fresh_rows_take_the_places_of_those_they_replace():
    """Ten cliques of 8: three rows of the first go, three with the same edges come."""
    rows = 80
    edges = [(a, b, 1.0) for a in range(rows) for b in range(a + 1, rows) if a // 8 == b // 8]
    graph = graph_of(rows, edges)
    then_O = np.arange(rows, dtype=np.int32) // 8
    before_N = np.arange(rows)
    before_N[[0, 3, 7]] = -1
    mended = mend(
        then_O,
        before_N,
        edited_N=np.zeros(len(before_N), bool),
        attract=graph,
        repel=None,
        group_N=np.arange(rows, dtype=np.int32),
        spec=MiningSpec(k=8),
        rng=np.random.default_rng(0),
    )
    assert (mended.partition.label_N == then_O).all()
    assert mended.touched == 1
    assert mended.partition.moved == 0


def test_rows_that_change_a_little_leave_most_communities_alone():
    graph, spec = random_graph(3, 2000, 20_000), MiningSpec(k=16)
    given = {"attract": graph, "repel": None, "group_N": np.arange(2000, dtype=np.int32)}
    then = balance(np.zeros(2000, np.int32), **given, spec=spec, rng=np.random.default_rng(0))
    before_N = np.arange(2000)
    before_N[np.flatnonzero(then.label_N < 2)[:20]] = -1
    mended = mend(
        then.label_N,
        before_N,
        edited_N=before_N < 0,
        **given,
        spec=spec,
        rng=np.random.default_rng(0),
    )
    assert 2 <= mended.touched <= OPEN_SHARE * 125
    whole = balance(np.zeros(2000, np.int32), **given, spec=spec, rng=np.random.default_rng(1))
    assert mended.partition.objective > 0.98 * whole.objective


def topics(rng, rows):
    """Return a graph of rows in 60 topics, most of its edges inside them, and the topics."""
    topic_N = rng.integers(0, 60, rows)
    one_E = rng.integers(0, rows, 12 * rows)
    order = np.argsort(topic_N, kind="stable")
    place = np.argsort(order)
    near_E = np.clip(place[one_E] + rng.integers(-30, 31, len(one_E)), 0, rows - 1)
    other_E = order[near_E]
    edges = {(min(a, b), max(a, b)) for a, b in zip(one_E.tolist(), other_E.tolist(), strict=True)}
    return graph_of(rows, [(a, b, 1.0) for a, b in sorted(edges) if a != b])


def inside(graph, label_N, row_X):
    """Return the mean number of edges that rows have inside their communities."""
    found = [
        (label_N[graph.indices[graph.indptr[row] : graph.indptr[row + 1]]] == label_N[row]).sum()
        for row in row_X
    ]
    return float(np.mean(found))


@pytest.mark.parametrize("edited", [True, False], ids=["replaced in place", "gone and new"])
def test_rows_that_are_new_meet_what_is_like_them(edited):
    """Where many communities have holes, too; and where a row stands that another was."""
    rng, rows = np.random.default_rng(4), 2000
    spec = MiningSpec(k=32)
    common = {"repel": None, "group_N": np.arange(rows, dtype=np.int32), "spec": spec}
    start = np.zeros(rows, np.int32)
    then_graph = topics(rng, rows)
    then = balance(start, attract=then_graph, **common, rng=np.random.default_rng(0))
    changed = np.sort(rng.choice(rows, 40, replace=False))
    # The edges of two rows exchanged: each is what another was.
    name_N = np.arange(rows)
    name_N[changed] = np.roll(changed, 1)
    table = then_graph
    rows_of = np.repeat(np.arange(rows), np.diff(table.indptr))
    pairs = zip(name_N[rows_of].tolist(), name_N[table.indices].tolist(), strict=True)
    now = graph_of(rows, [(a, b, 1.0) for a, b in pairs if a < b])
    before_N, edited_N = np.arange(rows), np.zeros(rows, bool)
    if edited:
        edited_N[changed] = True
    else:
        before_N[changed] = -1
    mended = mend(
        then.label_N,
        before_N,
        edited_N=edited_N,
        attract=now,
        **common,
        rng=np.random.default_rng(0),
    )
    whole = balance(start, attract=now, **common, rng=np.random.default_rng(1))
    met = inside(now, mended.partition.label_N, changed)
    assert met > 0.85 * inside(now, whole.label_N, changed)
    assert mended.partition.objective > 0.97 * whole.objective


def test_arrays_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="rows"):
        mend(
            np.zeros(4, np.int32),
            np.array([0, 1, 4]),
            edited_N=np.zeros(3, bool),
            attract=random_graph(0, 3, 3),
            repel=None,
            group_N=np.arange(3, dtype=np.int32),
            spec=MiningSpec(k=2),
            rng=np.random.default_rng(0),
        )
