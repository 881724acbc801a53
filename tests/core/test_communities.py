import random
import subprocess
import sys
from typing import get_args

import igraph
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array

from b3_core.artifacts import Address
from b3_core.balance import balance
from b3_core.communities import (
    PARTITIONERS,
    RESOLUTION_SHARE,
    Partition,
    _kept,
    community_sizes,
    find_communities,
    resolution,
)
from b3_core.config import MiningSpec
from b3_core.errors import InputError
from b3_core.graph import CsrGraph
from b3_core.store import ArtifactStore
from tests.conftest import ROOT, examples

LEIDEN = ["leiden", "leidenalg"]


def graph_of(rows, edges):
    """Build a graph from (row, row, weight)."""
    i, j, weight = (np.array(column) for column in zip(*edges, strict=True)) if edges else [[]] * 3
    half = coo_array((np.asarray(weight, float), (i, j)), shape=(rows, rows))
    return CsrGraph.of(half + half.T)


def clique(rows):
    return [(i, j, 1.0) for i in rows for j in rows if i < j]


def random_graph(seed, rows=300, edges=900):
    rng = np.random.default_rng(seed)
    pairs = {tuple(sorted(pair)) for pair in rng.integers(0, rows, (edges, 2)).tolist()}
    return graph_of(rows, [(i, j, float(rng.integers(1, 4))) for i, j in sorted(pairs) if i < j])


def cpm(label_N, graph, resolution):
    """Sum inner weight less resolution * pairs, over communities, one pair after the other."""
    weight_NN = graph.to_scipy().toarray()
    rows = range(len(label_N))
    return sum(
        weight_NN[i, j] - resolution
        for i in rows
        for j in rows
        if i < j and label_N[i] == label_N[j]
    )


TWO_CLIQUES = graph_of(10, [*clique(range(5)), *clique(range(5, 10)), (4, 5, 1.0)])


def processes(name, often):
    """METIS is a process a call: of several cases alike the fast tests have one."""
    return [pytest.mark.slow] if often and name.startswith("metis") else []


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        pytest.param(name, seed, marks=processes(name, seed > 0))
        for name in ("leiden", "leidenalg", "metis", "metis-paper", "kaminpar")
        for seed in range(3)
    ],
)
def test_two_cliques_that_touch_are_two_communities(name, seed):
    spec = MiningSpec(k=5, partitioner=name, resolution=0.3)
    label_N = find_communities(TWO_CLIQUES, spec, rng=np.random.default_rng(seed))
    assert len(set(label_N[:5])) == len(set(label_N[5:])) == 1
    assert label_N[0] != label_N[5]


@pytest.mark.parametrize("name", LEIDEN)
def test_weights_stay_with_their_edges(name):
    graph = graph_of(5, [(0, 1, 0.01), (1, 2, 9.0), (2, 3, 0.01), (3, 4, 9.0)])
    spec = MiningSpec(partitioner=name, resolution=0.5)
    label_N = find_communities(graph, spec, rng=np.random.default_rng(0))
    assert label_N[1] == label_N[2]
    assert label_N[3] == label_N[4]
    assert len(set(label_N)) == 3


@pytest.mark.parametrize("name", LEIDEN)
@pytest.mark.parametrize(("resolution", "communities"), [(0.9, 1), (1.1, 2)])
def test_an_edge_counts_once(name, resolution, communities):
    spec = MiningSpec(partitioner=name, resolution=resolution)
    label_N = find_communities(graph_of(2, [(0, 1, 1.0)]), spec, rng=np.random.default_rng(0))
    assert len(set(label_N)) == communities


def test_both_leidens_reach_the_same_quality():
    graph = random_graph(0)
    ours, theirs = (
        cpm(
            find_communities(
                graph, MiningSpec(partitioner=name, resolution=0.1), rng=np.random.default_rng(1)
            ),
            graph,
            0.1,
        )
        for name in LEIDEN
    )
    assert ours > 100  # singletons have 0
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize("name", PARTITIONERS)
def test_labels_are_compact_and_follow_the_seed(name):
    graph, spec = random_graph(1), MiningSpec(k=8, partitioner=name, resolution=0.2)
    one, same, other = (
        find_communities(graph, spec, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert one.dtype == np.int32
    assert np.unique(one).tolist() == list(range(one.max() + 1))
    assert (one == same).all()
    assert (one != other).any()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        pytest.param(name, rows, marks=processes(name, rows < 9))
        for name in PARTITIONERS
        for rows in (1, 3, 9)
    ],
)
def test_rows_without_any_edge_get_labels_too(name, rows):
    graph = CsrGraph.of(coo_array((rows, rows)))
    label_N = find_communities(
        graph, MiningSpec(k=4, partitioner=name), rng=np.random.default_rng(0)
    )
    assert label_N.shape == (rows,)


def test_metis_makes_n_over_k_parts_of_nearly_k_rows():
    graph = random_graph(2)
    label_N = find_communities(
        graph, MiningSpec(k=32, partitioner="metis-paper"), rng=np.random.default_rng(0)
    )
    sizes = np.bincount(label_N)
    assert len(sizes) == 300 // 32
    assert sizes.max() <= np.ceil(1.03 * 300 / 9)


def test_random_cuts_every_k_rows():
    spec = MiningSpec(k=4, partitioner="random")
    label_N = find_communities(TWO_CLIQUES, spec, rng=np.random.default_rng(0))
    assert np.bincount(label_N).tolist() == [4, 4, 2]
    assert label_N.tolist() != sorted(label_N)


def test_every_partitioner_of_the_configuration_is_there():
    names = get_args(MiningSpec.model_fields["partitioner"].annotation)
    assert set(names) == set(PARTITIONERS)


def test_generators_of_others_are_left_alone():
    """In a process of its own: threads that other tests left may draw from Python's generator."""
    code = """
import random, sys
import numpy as np
from b3_core.communities import PARTITIONERS, find_communities
from b3_core.config import MiningSpec
from tests.core.test_communities import random_graph

random.seed(5)
for name in PARTITIONERS:
    before = random.getstate(), np.random.get_state()[1].tolist()
    find_communities(random_graph(3), MiningSpec(partitioner=name), rng=np.random.default_rng(0))
    if (random.getstate(), np.random.get_state()[1].tolist()) != before:
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


@pytest.mark.parametrize("fails", [False, True])
def test_igraph_draws_from_pythons_generator_again(fails, monkeypatch):
    if fails:
        monkeypatch.setattr(igraph.Graph, "community_leiden", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            find_communities(TWO_CLIQUES, MiningSpec(), rng=np.random.default_rng(0))
    else:
        find_communities(TWO_CLIQUES, MiningSpec(), rng=np.random.default_rng(0))

    def draw():
        random.seed(7)
        return igraph.Graph.Erdos_Renyi(n=30, m=60).get_edgelist()

    assert draw() == draw()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("leiden", "igraph"),
        ("leidenalg", "leidenalg"),
        ("metis", "pymetis"),
        ("metis-paper", "pymetis"),
        ("kaminpar", "kaminpar"),
    ],
)
def test_a_package_that_is_missing_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"pip install {package}"):
        find_communities(TWO_CLIQUES, MiningSpec(partitioner=name), rng=np.random.default_rng(0))


def test_a_partitioner_that_forgets_rows_is_found_out(monkeypatch):
    monkeypatch.setitem(PARTITIONERS, "metis", lambda attract, spec, *, rng, repel: [0, 1])
    with pytest.raises(ValueError, match="metis labelled"):
        find_communities(TWO_CLIQUES, MiningSpec(partitioner="metis"), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("rows", "k", "sizes"), [(8, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 4, [3]), (0, 4, [])]
)
def test_sizes_are_k_and_a_remainder(rows, k, sizes):
    assert community_sizes(rows, k).tolist() == sizes


@pytest.mark.parametrize(
    ("labels", "k", "fault"),
    [
        ([0, 0, 1], 2, None),
        ([1, 0, 0], 2, None),
        ([0], 2, None),
        ([0, 1, 1], 2, "community 0 has 1 rows, expected 2"),
        ([0, 0, 0, 1], 2, "community 0 has 3 rows, expected 2"),
        ([0, 0, 2], 2, "3 communities, expected 2"),
        ([0, 0, 0], 2, "1 communities, expected 2"),
        ([-1, 0, 0], 2, "label -1 is negative"),
        ([], 2, "shape"),
    ],
)
def test_a_partition_is_exact_or_refused(labels, k, fault):
    label_N = np.array(labels, np.int32)
    if fault is None:
        Partition(label_N, k=k, moved=0, objective=0.0)
    else:
        with pytest.raises(ValueError, match=fault):
            Partition(label_N, k=k, moved=0, objective=0.0)


def test_a_partition_of_other_integers_is_refused():
    with pytest.raises(ValueError, match="int64"):
        Partition(np.array([0, 0], np.int64), k=2, moved=0, objective=0.0)


def test_a_partition_is_read_back_as_it_was_saved(tmp_path):
    store, address = ArtifactStore(str(tmp_path)), Address("data", "communities", "f00d")
    saved = Partition(np.array([1, 0, 0], np.int32), k=2, moved=1, objective=1 / 3)
    with store.draft(address, lineage={}, settings={}) as draft:
        saved.save(draft)
    loaded = Partition.load(store.get(address))
    assert loaded.label_N.tolist() == [1, 0, 0]
    assert loaded.label_N.dtype == np.int32
    assert (loaded.k, loaded.moved, loaded.objective) == (2, 1, 1 / 3)


def test_leidenalg_parts_rows_that_repel_one_another():
    """A clique of four, two of which repel each other more than both are held."""
    attract = graph_of(4, clique(range(4)))
    repel = graph_of(4, [(0, 1, 2.0)])
    rng = np.random.default_rng(0)
    spec = MiningSpec(partitioner="leidenalg", resolution=0.1, repulsion=2.0)
    label_N = find_communities(attract, spec, rng=rng, repel=repel)
    assert label_N[0] != label_N[1]
    for harmless in (spec.model_copy(update={"repulsion": 0.0}), spec):
        other = repel if harmless is not spec else None
        assert len(set(find_communities(attract, harmless, rng=rng, repel=other))) == 1


def test_the_resolution_follows_the_graph_and_k():
    """Rows of strength 4: at k = 5 a clique, at k = 9 a group that is half as dense."""
    graph = graph_of(10, [*clique(range(5)), *clique(range(5, 10))])
    five, nine = (resolution(graph, MiningSpec(k=k)) for k in (5, 9))
    assert five == pytest.approx(RESOLUTION_SHARE["mutual"])
    assert nine == pytest.approx(RESOLUTION_SHARE["mutual"] / 2)
    assert resolution(graph, MiningSpec(k=5, graph="union")) < five
    assert resolution(graph, MiningSpec(resolution=0.7)) == 0.7
    assert resolution(graph_of(3, []), MiningSpec()) > 0


def test_room_for_one_row_more_is_what_metis_lacks():
    """At 3 % no part of 16 rows may have 17; the searched tolerance keeps more inside."""
    graph = random_graph(4, rows=320, edges=1500)
    kept = {}
    for name in ("metis-paper", "metis"):
        spec = MiningSpec(k=16, partitioner=name)
        label_N = find_communities(graph, spec, rng=np.random.default_rng(0))
        kept[name] = _kept(label_N, graph, 16)
    assert kept["metis"] > kept["metis-paper"]


def test_weight_beyond_k_rows_is_not_kept():
    """A clique of five at k = 3 keeps 3 of its 10 pairs; one of two keeps its own."""
    graph = graph_of(7, [*clique(range(5)), (5, 6, 4.0)])
    label_N = np.array([0] * 5 + [1] * 2)
    assert _kept(label_N, graph, 3) == pytest.approx(2 * (3 + 4))


def test_kaminpar_and_random_and_rcm_are_exact_already():
    graph = random_graph(5, rows=250)
    for name in ("kaminpar", "rcm", "random"):
        spec = MiningSpec(k=16, partitioner=name)
        label_N = find_communities(graph, spec, rng=np.random.default_rng(0))
        assert sorted(np.bincount(label_N)) == [10] + [16] * 15


def test_rcm_follows_a_chain_whatever_the_order_of_its_rows():
    order = np.random.default_rng(0).permutation(64)
    chain = graph_of(64, [(order[i], order[i + 1], 1.0) for i in range(63)])
    spec = MiningSpec(k=8, partitioner="rcm")
    label_N = find_communities(chain, spec, rng=np.random.default_rng(0))
    cut = sum(label_N[order[i]] != label_N[order[i + 1]] for i in range(63))
    assert cut == 7


GRAPHS = {
    "seed": st.integers(0, 2**32),
    "rows": st.integers(1, 60),
    "k": st.integers(2, 12),
    "edges": st.sampled_from([0, 1, 3, 12]),
    "groups": st.sampled_from([2, 20, 10_000]),
    "repulsion": st.sampled_from([0.0, 1.0]),
}


def ends_in_exact_communities(name, *, seed, rows, k, edges, groups, repulsion):
    """Look for communities; isolated rows, disconnected graphs and repeated groups among them."""
    rng = np.random.default_rng(seed)
    attract, repel = (random_graph(seed + i, rows, edges * rows) for i in range(2))
    spec = MiningSpec(k=k, partitioner=name, repulsion=repulsion, swap_rounds=2)
    label_N = find_communities(attract, spec, rng=rng, repel=repel)
    group_N = rng.integers(0, groups, rows).astype(np.int32)
    made = balance(label_N, attract=attract, repel=repel, group_N=group_N, spec=spec, rng=rng)
    assert np.bincount(made.label_N).tolist() == community_sizes(rows, k).tolist()


@pytest.mark.parametrize("name", PARTITIONERS)
@given(graph=st.fixed_dictionaries(GRAPHS))
@settings(max_examples=examples(8), deadline=None)  # METIS starts a process each time
def test_every_partitioner_ends_in_exact_communities(name, graph):
    ends_in_exact_communities(name, **graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTITIONERS)
@given(graph=st.fixed_dictionaries(GRAPHS))
@settings(max_examples=200, deadline=None)
def test_every_partitioner_ends_in_exact_communities_200_times(name, graph):
    ends_in_exact_communities(name, **graph)
