import numpy as np
import pytest

from b3_core.bench.remine import changed, compare
from tests.conftest import topic_table
from tests.core.test_incremental import Mining

pytestmark = pytest.mark.usefixtures("one_teacher")


def tables(rows=900, others=60):
    def renamed(table):
        return table.rename_columns(["query", "positive"])

    return renamed(topic_table(rows)), renamed(topic_table(others + 40, seed=3).slice(40))


@pytest.mark.parametrize("where", ["together", "scattered"])
def test_a_third_each_is_gone_edited_and_new(where):
    table, others = tables()
    after = changed(table, others, share=0.02, where=where, rng=np.random.default_rng(0))
    was, now = (each["query"].to_pylist() for each in (table, after))
    gone = [place for place, query in enumerate(was) if query not in now]
    assert len(after) == 900
    assert now[-6:] == others["query"].to_pylist()[:6]
    assert sum(query.endswith(" revised") for query in now) == 6
    assert len(gone) == 12  # six of them edited
    assert (max(gone) - min(gone) == 11) == (where == "together")


@pytest.mark.slow
def test_what_is_compared(tmp_path):
    table, others = tables()
    mining = Mining(
        tmp_path,
        datasets=[
            {
                "name": "faq",
                "uri": str(tmp_path / "pairs.parquet"),
                "query": "query",
                "positive": "positive",
            }
        ],
    )
    before, _ = mining.run(table)
    after, _ = mining.run(
        changed(table, others, share=0.02, where="together", rng=np.random.default_rng(0))
    )
    found = compare(before.legs[0], after.legs[0], mining.store)
    assert 0 < found["fresh"] == found["embedded"] <= 12
    assert 0 < found["touched"] <= 0.3 * found["communities"]
    assert found["partners_kept"] > found["partners_kept_from_scratch"]
    assert found["window"] > 0.9 * found["window_from_scratch"]
    assert found["stages"][-1]["stage"] == "all"
    assert found["stages"][-1]["whole"] == pytest.approx(
        sum(row["whole"] for row in found["stages"][:-1])
    )
    again, _ = mining.run(table)  # begun with, and still there
    assert again.legs[0].communities[0].address == before.legs[0].communities[0].address
    assert len(mining.store.artifacts("faq", "communities")) == 1
