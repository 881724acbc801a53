"""A new student beside the one in place, each really trained."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from b3_core import head
from b3_core.artifacts import Address
from b3_core.config import PromoteSpec
from b3_core.embed import Pairs
from b3_core.errors import InputError
from b3_core.promote import Promotion, trained_on
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
