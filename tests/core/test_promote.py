"""A new student beside the one in place, each really trained."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import head
from b3_core.artifacts import Address
from b3_core.config import DatasetSpec, EvalSpec, PromoteSpec
from b3_core.dataset_stage import Pairs
from b3_core.errors import InputError
from b3_core.pairs import PairTable
from b3_core.promote import Promotion, trained_on, unseen_rows
from b3_core.reading import read_split
from b3_core.store import ArtifactStore
from tests.conftest import topic_table
from tests.core.test_incremental import Mining

GOOD = {"student": "tokens", "temperature": 0.05}
BAD = {"student": "static", "dim": 8, "learning_rate": 1e-9}  # stays as random as it began


class Place:
    """A CONFIG whose training and data change, and the place its students compete for."""

    def __init__(self, folder, **rule):
        self.folder, self.rule = folder, PromoteSpec(**rule)

    def compete(self, train, table):
        mining = Mining(self.folder, train=train, evaluate={"holdout": 0.2})
        self.spec, self.store = mining.spec, mining.store
        plan, _ = mining.run(table)
        plan.students[0].run(mining.store)
        evaluation = plan.evaluations["b3", 0]
        evaluation.run(mining.store)
        self.promotion = Promotion(mining.store, "pipeline", self.rule)
        assert not self.promotion.decided(evaluation)
        self.promotion.nominate(evaluation)
        standing = self.promotion.standing(evaluation)
        if standing is not None:
            self.standing = standing.run(mining.store)
        decision = self.promotion.decide(evaluation)
        assert self.promotion.decided(evaluation)
        assert self.promotion.decide(evaluation) | {"why": ""} == decision | {"why": ""} or (
            decision["status"] == "current"
        )
        return decision

    @property
    def statuses(self):
        return [each["status"] for each in self.promotion.history]


@pytest.mark.slow  # three students
def test_the_better_one_is_in_place(tmp_path):
    place, table = Place(tmp_path), topic_table(400)
    first = place.compete(BAD, table)
    assert first["status"] == "current"
    assert "difference" not in first
    second = place.compete(GOOD, table)
    assert second["status"] == "current"
    assert second["difference"]["low"] > 0
    third = place.compete(BAD | {"dim": 16}, table)
    assert third["status"] == "rejected"
    assert third["difference"]["high"] < 0
    assert place.promotion.current.fingerprint in second["student"]
    assert place.statuses == [
        *("candidate", "current"),
        *("candidate", "retired", "current"),
        *("candidate", "rejected"),
    ]
    # The first was replaced: when its data come back, it is compared anew.
    assert place.compete(BAD, table)["status"] == "rejected"
    assert place.statuses[-1] == "rejected"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"rule": "not-worse"}, "current"),
        ({"rule": "better"}, "rejected"),
    ],
)
def test_as_good_as_the_one_in_place(tmp_path, rule, status):
    place, table = Place(tmp_path, margin=0.05, **rule), topic_table(400)
    place.compete(GOOD, table)
    assert place.compete(GOOD | {"temperature": 0.0501}, table)["status"] == status


@pytest.mark.slow
def test_data_moved_on(tmp_path, monkeypatch):
    """The current student is judged on the new rows; those that it was trained on do not count."""
    place, table = Place(tmp_path), topic_table(400)
    with monkeypatch.context() as older:
        older.setattr(head, "SCHEMA", 5)  # mined by a version of b3 before this one
        place.compete(GOOD, table)
    smaller = table.slice(100)  # a fifth of fewer rows: some of those held out were trained on
    decision = place.compete(GOOD, pa.concat_tables([smaller, topic_table(60, seed=4).slice(40)]))
    heldout = Pairs.of(place.spec.datasets[0], place.spec.evaluate)
    heldout = place.store.get(heldout.address).counts["heldout"]
    assert 0 < decision["difference"]["queries"] < heldout
    standing = place.standing
    assert standing.record["lineage"]["student"] == place.promotion.history[1]["student"][2]


@pytest.mark.slow
def test_where_all_was_trained_on_all_counts_and_that_is_said(tmp_path):
    place, table = Place(tmp_path), topic_table(400)
    place.compete(GOOD, table)
    dataset = place.spec.datasets[0]
    trained = Pairs.of(dataset, place.spec.evaluate).address
    kept = PairTable.load(place.store.get(trained), "train").table["row_id"]
    decision = place.compete(BAD, table.take(kept))
    assert decision["status"] == "rejected"
    assert decision["why"].endswith("of every query, so that all count, in its favour")
    heldout = place.store.get(Pairs.of(dataset, place.spec.evaluate).address).counts["heldout"]
    assert decision["difference"]["queries"] == heldout


def rows(*rows):
    names = ("key", "positive", "group")
    kinds = (pa.string(), pa.string(), pa.int32())
    columns = zip(*rows, strict=True) if rows else [[]] * 3
    return pa.table([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names=names)


def test_what_was_trained_on_is_unseen_by_nobody_of_its_group():
    """A group that was trained on is held out now, for one of its rows is new."""
    trained = rows(("k0", "A", 0), ("k1", "B", 1), ("k2", "C", 1))
    heldout = rows(
        ("k9", "A", 7),  # a new query of A
        ("k1", "B", 8),
        ("k8", "X", 8),  # of its group by the user's column
        ("k7", "Y", 9),
        ("k6", "Z", 5),  # what is in train now is of its group, and was trained on
    )
    train = rows(("k5", "C", 5), ("k4", "D", 6))
    fair_Q = unseen_rows(heldout, train, trained, labelled=False)
    assert fair_Q.tolist() == [False, False, False, True, False]
    fair_Q = unseen_rows(heldout, train, trained, labelled=True)  # A, B and C are labels
    assert fair_Q.tolist() == [True, False, True, True, True]
    assert unseen_rows(heldout, train, rows(), labelled=False).all()


def test_new_questions_about_documents_that_were_trained_on_do_not_count(tmp_path):
    """Read as a run reads them: every group with a new row may be held out where it was not."""
    then = [(f"q{i} of {d}", f"text {d}") for d in range(60) for i in range(3)]
    now = [*then, *((f"new of {d}", f"text {d}") for d in range(0, 60, 2)), ("alone", "text 60")]
    splits = []
    for name, found in (("then", then), ("now", now)):
        file = tmp_path / f"{name}.parquet"
        query, positive = zip(*found, strict=True)
        pq.write_table(pa.table({"q": query, "p": positive}), file)
        dataset = DatasetSpec(name="d", uri=str(file), query="q", positive="p")
        splits.append(read_split(dataset, EvalSpec(holdout=0.3)))
    trained, split = splits[0].train, splits[1]
    fair_Q = unseen_rows(split.heldout.table, split.train.table, trained.table, labelled=False)
    positive_Q = split.heldout.positives.to_pylist()
    known = set(trained.positives.to_pylist())
    assert fair_Q.tolist() == [positive not in known for positive in positive_Q]
    new = {query for query, _ in now} - {query for query, _ in then}
    pairs = zip(split.heldout.queries.to_pylist(), fair_Q, strict=True)
    assert any(query in new and not fair for query, fair in pairs)
    assert fair_Q.any()


def test_a_manifest_of_an_older_schema_says_what_a_student_was_trained_on(tmp_path):
    store = ArtifactStore(str(tmp_path))
    manifest, student = (Address("faq", stage, "0" * 20) for stage in ("manifest", "student"))
    older = {"schema": 3, "datasets": [{"name": "faq", "pairs": "1" * 20}]}
    with store.draft(manifest, lineage={}, settings={}) as draft:
        draft.write_json("manifest.json", older)
    with store.draft(student, lineage={"manifest": "0" * 20}, settings={}) as draft:
        draft.write_json("loss.json", [])
    assert trained_on(student, store) == older


def test_an_arm_that_is_not_there_is_refused(tmp_path):
    pq.write_table(topic_table(9), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match="promote.arm is 'paper', but arms are b3"):
        Mining(tmp_path, promote={"arm": "paper"})
