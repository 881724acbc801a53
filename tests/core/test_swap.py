import itertools

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from b3_core.graph import CsrGraph
from b3_core.progress import silent
from b3_core.swap import FEW, GROWN, PARTS, TOLERANCE, Net, Seats, refine, sweep, worth
from tests.conftest import examples


def symmetric(rng, rows, *, density, values=(1.0, 2.0, 3.0)):
    upper_NN = np.triu(rng.choice(values, (rows, rows)), 1)
    upper_NN *= rng.random((rows, rows)) < density
    return upper_NN + upper_NN.T


class Case:
    """A random graph with whole weights, w as a full matrix, and evenness by a power of two.

    Every sum is exact then: of two exchanges that gain the same none is better by rounding.
    """

    def __init__(self, seed, *, rows, k, density, groups, repulsion, evenness=0.0):
        rng = np.random.default_rng(seed)
        attract_NN, repel_NN = (symmetric(rng, rows, density=density) for _ in range(2))
        group_N = rng.integers(0, groups, rows).astype(np.int32)
        graphs = [CsrGraph.of(csr_array(weight)) for weight in (attract_NN, repel_NN)]
        self.net = Net.of(*graphs, group_N=group_N, repulsion=repulsion)
        self.w_NN = attract_NN - repulsion * repel_NN
        same_NN = group_N[:, None] == group_N
        self.w_NN = self.w_NN - self.net.penalty * (same_NN & ~np.eye(rows, dtype=bool))
        self.edge_NN = attract_NN - repulsion * repel_NN
        self.present_NN = self.edge_NN != 0
        self.label_N = (rng.permutation(rows) // k).astype(np.int32)
        self.group_N = group_N
        self.rng = rng
        self.evenness = evenness

    @property
    def seats(self):
        seats = Seats.of(self.label_N, self.net, evenness=self.evenness)
        return seats._replace(bend=2.0 ** round(np.log2(seats.bend))) if seats.bend else seats

    def objective(self, label_N, bend=0.0):
        """Worth of every community, less the penalty of every pair of one group in one."""
        return self.worth(label_N, bend) - self.net.penalty * self.kin(label_N)

    def worth(self, label_N, bend=0.0):
        hardness = [self.edge_NN[np.ix_(m, m)].sum() / 2 for m in self.members(label_N)]
        return float(sum(worth(float(h), bend) for h in hardness))

    def kin(self, label_N):
        """Count the pairs of one group in a community."""
        same_NN = label_N[:, None] == label_N
        kin_NN = same_NN & (self.group_N[:, None] == self.group_N)
        return int(kin_NN.sum() - len(label_N)) // 2

    @staticmethod
    def members(label_N):
        return [np.flatnonzero(label_N == c) for c in range(label_N.max() + 1)]


def tie(case, label_N, row, community):
    """w(row, community), by definition."""
    return sum(
        case.w_NN[row, other] for other in np.flatnonzero(label_N == community) if other != row
    )


def edges(case, label_N, row, community):
    """w(row, community) without the penalty."""
    return case.edge_NN[row, label_N == community].sum()


def slow_options(case, seats, row):
    """The few other communities with the strongest positive ties, then the spare ones."""
    own, communities = seats.label[row], len(seats.member)
    tie_C = dict.fromkeys(seats.label[np.flatnonzero(case.present_NN[row])].tolist(), 0.0)
    for other in np.flatnonzero(case.present_NN[row]):
        tie_C[int(seats.label[other])] += case.edge_NN[row, other]
    outer = [c for c in tie_C if c != own and tie_C[c] > 0]
    options = sorted(outer, key=lambda c: -tie_C[c])[:FEW]  # stable: first met, first tried
    if tie(case, seats.label, row, own) < 0:
        spares = [(int(seats.spare[row]) + step) % communities for step in range(FEW)]
        options += [c for c in spares[: min(FEW, communities)] if c != own]
    return options


def slow_sweep(case, seats, order_C):
    """What ``sweep`` does, each gain the difference of two whole objectives."""
    swaps, before, kin = 0, case.worth(seats.label, seats.bend), case.kin(seats.label)

    def gain(i, j):
        label_N = seats.label.copy()
        label_N[[i, j]] = label_N[[j, i]]
        return case.objective(label_N, seats.bend) - case.objective(seats.label, seats.bend)

    for part in np.array_split(order_C, min(PARTS, len(order_C))):
        rows = [i for a in part for i in seats.member[a] if i >= 0]
        found = {}
        for i in rows:
            best_j, best_gain = -1, TOLERANCE
            for b in slow_options(case, seats, i):
                for j in seats.member[b][seats.member[b] >= 0]:
                    if gain(i, j) > best_gain + 1e-12:
                        best_j, best_gain = j, gain(i, j)
            found[i] = best_j
        for i, j in found.items():
            if j < 0 or seats.label[i] == seats.label[j] or gain(i, j) <= TOLERANCE:
                continue
            swaps += 1
            a, b = seats.label[[i, j]]
            here, there = seats.place[[i, j]]
            seats.label[[i, j]], seats.place[[i, j]] = (b, a), (there, here)
            seats.member[a, here], seats.member[b, there] = j, i
    gained = case.worth(seats.label, seats.bend) - before
    return swaps, gained, kin - case.kin(seats.label)


@st.composite
def cases(draw):
    rows = draw(st.integers(2, 26))
    return Case(
        draw(st.integers(0, 2**32)),
        rows=rows,
        k=draw(st.integers(2, 7)),
        density=draw(st.sampled_from([0.0, 0.1, 0.3, 0.9])),
        groups=draw(st.sampled_from([3, rows, 10_000])),
        repulsion=draw(st.sampled_from([0.0, 0.5, 2.0])),
        evenness=draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
    )


@given(case=cases())
@settings(max_examples=examples(60), deadline=None)
def test_the_kernel_swaps_exactly_as_its_slow_twin(case):
    fast, slow = case.seats, case.seats
    communities = len(fast.member)
    for _ in range(3):
        order_C = case.rng.permutation(communities)
        fast.spare[:] = slow.spare[:] = case.rng.integers(communities, size=len(case.label_N))
        assert sweep(case.net, fast, order_C) == pytest.approx(slow_sweep(case, slow, order_C))
        assert (fast.label == slow.label).all()
        assert (fast.member == slow.member).all()


@given(case=cases())
@settings(max_examples=examples(100), deadline=None)
def test_gains_add_up_to_the_difference_of_the_objective(case):
    seats = case.seats
    communities = len(seats.member)
    for _ in range(4):
        before, sizes = case.objective(seats.label, seats.bend), np.bincount(seats.label)
        seats.spare[:] = case.rng.integers(communities, size=len(case.label_N))
        swaps, gained, parted = sweep(case.net, seats, case.rng.permutation(communities))
        whole = gained + case.net.penalty * parted
        assert case.objective(seats.label, seats.bend) - before == pytest.approx(whole)
        assert whole >= swaps * TOLERANCE
        assert (np.bincount(seats.label) == sizes).all()
        for row, community in enumerate(seats.label):
            assert seats.member[community, seats.place[row]] == row
            assert seats.own[row] == pytest.approx(edges(case, seats.label, row, community))
        inner = [case.edge_NN[np.ix_(m, m)].sum() / 2 for m in case.members(seats.label)]
        assert seats.hardness == pytest.approx(np.array(inner))


def test_the_twins_meet_cases_in_which_something_is_swapped():
    swaps = []
    for seed in range(10):
        case = Case(seed, rows=24, k=4, density=0.3, groups=12, repulsion=0.5)
        seats = Seats.of(case.label_N, case.net)
        swaps.append(sweep(case.net, seats, np.arange(6))[0])
    assert min(swaps) >= 3


def test_one_swap_worked_by_hand():
    """Communities {0, 1} and {2, 3}; edges 0-2 of 5, 0-1 of 1, 2-3 of 1.

    Exchanging 1 and 2: gain = w(1, B) - w(1, A) + w(2, A) - w(2, B) - 2 w(1, 2)
                             = 0 - 1 + 5 - 1 - 0 = 3, and so it is for 0 and 3.
    """
    weight_NN = np.zeros((4, 4))
    for i, j, weight in ((0, 2, 5.0), (0, 1, 1.0), (2, 3, 1.0)):
        weight_NN[i, j] = weight_NN[j, i] = weight
    net = Net.of(
        CsrGraph.of(csr_array(weight_NN)),
        None,
        group_N=np.arange(4, dtype=np.int32),
        repulsion=0.0,
    )
    assert net.penalty == 1 + 2 * 6
    seats = Seats.of(np.array([0, 0, 1, 1], np.int32), net)
    assert seats.own.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert seats.hardness.tolist() == [1.0, 1.0]
    assert sweep(net, seats, np.array([0, 1])) == (1, 3.0, 0)
    assert sorted(seats.hardness) == [0.0, 5.0]
    assert seats.label[0] == seats.label[2] != seats.label[1] == seats.label[3]


@given(case=cases())
@settings(max_examples=examples(40), deadline=None)
def test_refining_ends_where_no_option_gains_or_rounds_are_out(case):
    start_N = case.label_N.copy()
    refined_N = refine(
        case.label_N,
        case.net,
        rounds=50,
        rng=case.rng,
        progress=silent,
        evenness=case.evenness,
        enough=0.0,
    )
    assert (case.label_N == start_N).all()
    bend = case.seats.bend
    before, after = case.objective(start_N, bend), case.objective(refined_N, bend)
    bent = case.evenness and Seats.of(refined_N, case.net).mean > GROWN * case.seats.mean
    assert bent or after >= before - 1e-9
    kin_before, kin_after = (
        sum(
            case.group_N[i] == case.group_N[j] and label_N[i] == label_N[j]
            for i, j in itertools.combinations(range(len(label_N)), 2)
        )
        for label_N in (start_N, refined_N)
    )
    assert kin_after <= kin_before
    seats = Seats.of(refined_N, case.net)._replace(bend=bend)
    if (
        not bent and (seats.own >= 0).all()
    ):  # no spare communities are drawn then: nothing is left to chance
        assert slow_sweep(case, seats, np.arange(len(seats.member)))[0] == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_a_single_community_has_nothing_to_swap_with(rows):
    net = Net.of(
        CsrGraph.of(csr_array((rows, rows))),
        None,
        group_N=np.zeros(rows, np.int32),
        repulsion=0.0,
    )
    label_N = np.zeros(rows, np.int32)
    refined_N = refine(label_N, net, rounds=3, rng=np.random.default_rng(0), progress=silent)
    assert (refined_N == 0).all()


def test_worth_is_concave_and_never_falls():
    """With bend c = 1/8: h - h^2 / 8 up to its top of 2 at h = 4."""
    points = [-2.0, 0.0, 1.0, 2.0, 4.0, 9.0]
    assert [worth(h, 0.125) for h in points] == [-2.0, 0.0, 0.875, 1.5, 2.0, 2.0]
    assert [worth(h, 0.0) for h in points] == points


def test_evenness_spreads_edges_over_communities():
    """Two rows with edges to one another are worth more apart from a dense community."""
    rng = np.random.default_rng(0)
    weight_NN = symmetric(rng, 240, density=0.05)
    weight_NN[:40, :40] += symmetric(rng, 40, density=0.9)
    label_N = (rng.permutation(240) // 8).astype(np.int32)
    net = Net.of(
        CsrGraph.of(csr_array(weight_NN)), None, group_N=np.arange(240, dtype=np.int32), repulsion=0
    )

    def refined(evenness):
        made = refine(
            label_N,
            net,
            rounds=20,
            rng=np.random.default_rng(1),
            progress=silent,
            evenness=evenness,
        )
        return Seats.of(made, net).hardness

    plain, even = refined(0.0), refined(1.0)
    assert plain.sum() > even.sum() > 1.5 * Seats.of(label_N, net).hardness.sum()
    assert even.std() / even.mean() < 0.9 * plain.std() / plain.mean()


def planted(*, rows, k, groups, hub=0.0, seed=0):
    """Rows tied to all others of their own block, and to a few elsewhere; no block has kin.

    ``hub``: how much the first row is tied to all others, too.
    """
    rng = np.random.default_rng(seed)
    label_N = np.arange(rows, dtype=np.int32) // k
    weight_NN = 4.0 * (label_N[:, None] == label_N) + symmetric(rng, rows, density=0.02)
    weight_NN[0], weight_NN[:, 0] = weight_NN[0] + hub, weight_NN[:, 0] + hub
    np.fill_diagonal(weight_NN, 0.0)
    net = Net.of(
        CsrGraph.of(csr_array(weight_NN)),
        None,
        group_N=(np.arange(rows) % groups).astype(np.int32),
        repulsion=0.0,
    )
    return net, label_N, rng.permutation(label_N).astype(np.int32)


@pytest.mark.parametrize("evenness", [0.0, 1.0])
def test_communities_drawn_at_random_become_those_that_are_there(evenness):
    """Also where edges lose worth by the mean of communities, which is next to nothing at first."""
    net, planted_N, start_N = planted(rows=480, k=8, groups=480)
    rng = np.random.default_rng(0)
    made_N = refine(start_N, net, rounds=50, rng=rng, progress=silent, evenness=evenness)
    found, there, drawn = (Seats.of(label_N, net).mean for label_N in (made_N, planted_N, start_N))
    assert drawn < 0.1 * there
    assert found > 0.9 * there


def test_parting_groups_is_not_the_end():
    """What a round gains by parting groups says nothing of what edges have to give.

    The penalty is more than all edges of the row that has most.
    """
    net, planted_N, start_N = planted(rows=480, k=8, groups=20, hub=5.0)
    made = [
        refine(start_N, net, rounds=50, rng=np.random.default_rng(0), progress=silent, enough=share)
        for share in (0.0, 0.01)
    ]
    thorough, quick = (Seats.of(label_N, net).mean for label_N in made)
    assert quick > 0.95 * thorough > 0.9 * Seats.of(planted_N, net).mean


def test_threads_do_not_change_a_swap():
    case = Case(3, rows=1_500, k=12, density=0.05, groups=800, repulsion=0.5)
    made, most = [], numba.get_num_threads()
    for threads in (1, most):
        numba.set_num_threads(threads)
        rng = np.random.default_rng(0)
        made.append(refine(case.label_N, case.net, rounds=20, rng=rng, progress=silent))
    assert (made[0] == made[1]).all()
    assert (made[0] != case.label_N).any()


def test_a_sweep_that_gains_little_is_the_last():
    case = Case(4, rows=900, k=9, density=0.05, groups=10_000, repulsion=0.0)
    rounds = {}
    for enough in (0.0, 0.3):
        told = []
        refined_N = refine(
            case.label_N,
            case.net,
            rounds=50,
            rng=np.random.default_rng(0),
            progress=lambda *state, told=told: told.append(state),
            enough=enough,
        )
        rounds[enough] = len(told), case.objective(refined_N)
    assert 2 < rounds[0.3][0] < rounds[0.0][0] < 50
    assert case.objective(case.label_N) < rounds[0.3][1] < rounds[0.0][1]
