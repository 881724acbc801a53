"""`b3 tune` from a CONFIG to the one that it writes."""

import json

import pytest

from b3_core.config import load_config

pytestmark = pytest.mark.slow


def test_a_config_is_tuned_and_what_is_written_can_be_run(b3, write_config, tmp_path):
    config = write_config(batches={"batch_size": 32, "curriculum": [{"epochs": 2}]})
    output = tmp_path / "tuned.yaml"
    asked = ("tune", config, "--trials", 2, "--seeds", 1, "--output", output)
    found = json.loads(b3(*asked, "--json").stdout)
    candidates, duel = found["rounds"]
    assert [row["arm"] for row in candidates["arms"]][:2] == ["random", "default"]
    assert len(candidates["arms"]) == 3
    assert [row["arm"] for row in duel["arms"]] == ["random", "b3", "refresh"]
    assert {len(row["seeds"]) for row in candidates["arms"]} == {1}
    assert {len(row["seeds"]) for row in duel["arms"]} == {2}
    best = max(candidates["arms"][1:], key=lambda row: row["mrr"])
    assert found["chosen"] == best["arm"]
    surely = duel["differences"]["b3 - refresh"]["high"] < 0
    assert found["refresh"] == surely
    tuned = load_config(output)
    assert any(phase.refresh for phase in tuned.batches.curriculum) == surely
    assert tuned.batches.epochs == 2
    refused = b3(*asked, check=False)
    assert refused.returncode == 2 and "is there already" in refused.stderr
    shown = b3(*asked, "--no-refresh", "--force").stdout
    assert f"chosen: {found['chosen']}, written to" in shown
    assert not any(phase.refresh for phase in load_config(output).batches.curriculum)
    assert b3("mine", output).returncode == 0
