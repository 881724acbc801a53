"""The sampler yields the plan: nothing else, nothing less, in its order."""

import copy
import pickle

import numpy as np
import pyarrow as pa
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from b3_core.batches import BatchPlan
from b3_core.errors import InputError
from b3_core.groups import group_ids
from b3_core.pairs import SCHEMA, PairTable
from b3_core.sampler import PlanSampler, TrainerSampler
from b3_core.slots import row_dataset


def make_plan(rows, datasets, epochs) -> BatchPlan:
    row_SB = np.array(rows, np.int32)
    dataset_SB = np.array(datasets, np.int16)
    if dataset_SB.ndim == 1:
        dataset_SB = np.repeat(dataset_SB[:, None], row_SB.shape[1], axis=1)
    return BatchPlan(
        row_SB=row_SB,
        dataset_SB=dataset_SB,
        epoch_S=np.array(epochs, np.int16),
        community_SB=np.full_like(row_SB, -1),
        left_out=np.zeros((0, 3), np.int32),
        duplicates=0,
    )


def make_table(name: str, texts: list[tuple[str, str]]) -> PairTable:
    positive = pa.chunked_array([[p for _, p in texts]], pa.string())
    columns = [
        pa.array(np.arange(len(texts))),
        pa.array([format(i, "032x") for i in range(len(texts))]),
        pa.array([q for q, _ in texts]),
        positive,
        pa.array(group_ids(positive)),
    ]
    return PairTable(name, pa.table(columns, schema=SCHEMA))


LENGTHS = [5, 4]
# Epoch 0 has three batches, epoch 1 has two: dataset 1's rows begin at position 5.
PLAN = make_plan([[4, 0], [3, 1], [2, 3], [0, 2], [1, 4]], [0, 1, 0, 1, 0], [0, 0, 0, 1, 1])
FIRST, SECOND = [[4, 0], [8, 6], [2, 3]], [[5, 7], [1, 4]]


def test_an_epoch_at_a_time_in_the_plans_order():
    sampler = PlanSampler.of_rows(PLAN, LENGTHS)
    assert sampler.epochs == 2
    assert (list(sampler), len(sampler)) == (FIRST, 3)
    sampler.set_epoch(1)
    assert (list(sampler), len(sampler)) == (SECOND, 2)
    assert list(sampler) == SECOND  # as often as asked for
    sampler.set_epoch(0)
    assert list(sampler) == FIRST


def test_one_pass_yields_all_epochs_whatever_epoch_is_set():
    sampler = PlanSampler.of_rows(PLAN, LENGTHS, one_pass=True)
    sampler.set_epoch(1)  # Hugging Face's trainer does, through accelerate
    assert (list(sampler), len(sampler)) == (FIRST + SECOND, 5)


def test_slices_of_a_batch_follow_one_another():
    sampler = PlanSampler.of_rows(PLAN, LENGTHS, processes=2)
    assert list(sampler) == [[4], [0], [8], [6], [2], [3]]
    assert (sampler.batch_size, len(sampler)) == (1, 6)


@pytest.mark.parametrize("epoch", [-1, 2])
def test_an_epoch_that_is_not_there(epoch):
    with pytest.raises(InputError, match=f"no epoch {epoch} in the plan; expected 0 to 1"):
        PlanSampler.of_rows(PLAN, LENGTHS).set_epoch(epoch)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 4], "batch 0 of the plan has row 4 of dataset 0, whose table has 4 rows"),
        ([5, 3], "batch 1 of the plan has row 3 of dataset 1, whose table has 3 rows"),
        ([5], "the plan has a dataset 1, counted from 0; expected 1 datasets"),
    ],
)
def test_tables_of_another_plan(lengths, message):
    with pytest.raises(InputError, match=message):
        PlanSampler.of_rows(PLAN, lengths)


def test_batches_that_cannot_be_shared():
    with pytest.raises(InputError, match="2 rows cannot be shared equally by 3 processes"):
        PlanSampler.of_rows(PLAN, LENGTHS, processes=3)


SLOTS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_slots_are_counted_through_all_epochs():
    sampler = PlanSampler.of_slots(PLAN)
    assert list(sampler) == SLOTS[:3]
    sampler.set_epoch(1)
    assert list(sampler) == SLOTS[3:]
    assert list(PlanSampler.of_slots(PLAN, one_pass=True)) == SLOTS


class TestGoingOn:
    @pytest.mark.parametrize("one_pass", [False, True])
    @pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
    def test_any_number_of_processes_goes_on_where_others_were(self, one_pass, before, after):
        whole = sum(PlanSampler.of_slots(PLAN, one_pass=one_pass), [])
        for stop in range(len(whole) // 2 + 1):
            first = PlanSampler.of_slots(PLAN, processes=before, one_pass=one_pass)
            taken = iter(first)
            seen = sum((next(taken) for _ in range(stop * before)), [])
            second = PlanSampler.of_slots(PLAN, processes=after, one_pass=one_pass)
            second.load_state_dict(first.state_dict())
            second.set_epoch(0)  # as a loop does before every pass
            assert len(second) == (len(whole) // 2 - stop) * after
            assert seen + sum(second, []) == whole
            assert sum(second, []) == whole  # the pass after it is whole

    def test_the_next_epoch_begins_at_its_start(self):
        sampler = PlanSampler.of_slots(PLAN)
        sampler.load_state_dict({"epoch": 1, "batches": 1})
        assert list(sampler) == SLOTS[4:]
        sampler.load_state_dict({"epoch": 1, "batches": 1})
        sampler.set_epoch(0)
        assert (list(sampler), sampler.state_dict()) == (SLOTS[:3], {"epoch": 0, "batches": 3})

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({"epoch": 0, "batches": 4}, "no batch 4 in the pass; expected 0 to 3"),
            ({"epoch": 2, "batches": 0}, "no epoch 2 in the plan"),
            ({"epoch": None, "batches": 1}, "a state of epoch None for a sampler that is at epoch"),
        ],
    )
    def test_places_that_are_not_there(self, state, message):
        with pytest.raises(InputError, match=message):
            PlanSampler.of_slots(PLAN).load_state_dict(state)


class TestForTrainer:
    # What sentence-transformers hands over; the names are its contract.
    SETTINGS = {"drop_last": False, "valid_label_columns": ["label"], "generator": None, "seed": 7}

    def test_it_is_called_as_the_trainer_calls_it(self):
        sampler = TrainerSampler(PLAN)(range(10), batch_size=2, **self.SETTINGS)
        assert list(sampler) == SLOTS

    @pytest.mark.parametrize(("size", "processes"), [(1, 1), (4, 1), (2, 2)])
    def test_another_batch_size_is_refused(self, size, processes):
        make = TrainerSampler(PLAN, processes=processes)
        with pytest.raises(
            InputError, match=rf"size is {size} a device; expected {2 // processes}"
        ):
            make(range(10), batch_size=size, **self.SETTINGS)

    def test_a_checkpoint_can_hold_it_but_not_the_plan(self):
        make = TrainerSampler(PLAN, processes=2)
        saved = pickle.dumps(make)
        assert len(saved) < 200
        with pytest.raises(InputError, match="the arguments of a checkpoint hold no plan"):
            pickle.loads(saved)(range(10), batch_size=1)
        copied = copy.deepcopy(make)(range(10), batch_size=1)
        assert list(copied) == list(make(range(10), batch_size=1))

    def test_another_dataset_is_refused(self):
        with pytest.raises(InputError, match="dataset has 9 items; expected 10"):
            TrainerSampler(PLAN)(range(9), batch_size=2, **self.SETTINGS)


@settings(deadline=None)
@given(
    processes=st.sampled_from([1, 2, 4]),
    epochs=st.lists(st.integers(0, 2), min_size=1, max_size=12).map(sorted),
    seed=st.integers(0, 99),
)
def test_accelerate_gives_every_process_its_slice_of_every_batch(processes, epochs, seed):
    rows = np.random.default_rng(seed).permutation(len(epochs) * 4).reshape(-1, 4)
    plan = make_plan(rows, [0] * len(epochs), epochs)
    shards = [
        BatchSamplerShard(
            PlanSampler.of_rows(plan, [rows.size], processes=processes, one_pass=True),
            num_processes=processes,
            process_index=r,
            even_batches=False,
        )
        for r in range(processes)
    ]
    slices = [list(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [len(epochs)] * processes
    joined = [sum(parts, []) for parts in zip(*slices, strict=True)]
    assert joined == rows.tolist()


def test_rows_and_batches_meet_in_a_plain_data_loader():
    pairs = [
        make_table("a", [(f"qa{i}", f"pa{i}") for i in range(5)]),
        make_table("b", [(f"qb{i}", f"pb{i}") for i in range(4)]),
    ]
    sampler = PlanSampler.of_rows(PLAN, [len(table) for table in pairs])
    loader = DataLoader(row_dataset(pairs), batch_sampler=sampler)
    seen = []
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        seen += [(list(batch["query"]), list(batch["positive"])) for batch in loader]
    assert seen == [
        (["qa4", "qa0"], ["pa4", "pa0"]),
        (["qb3", "qb1"], ["pb3", "pb1"]),
        (["qa2", "qa3"], ["pa2", "pa3"]),
        (["qb0", "qb2"], ["pb0", "pb2"]),
        (["qa1", "qa4"], ["pa1", "pa4"]),
    ]
