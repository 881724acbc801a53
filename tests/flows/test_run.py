"""The pipeline as a person runs it: commands, real Prefect, real Ray, real training."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from sentence_transformers import SentenceTransformer

from b3_core.manifest import Manifest
from b3_core.store import open_artifact
from tests.conftest import topic_table
from tests.system.test_kill import manifest_hashes, records


@pytest.mark.timeout(290)
@pytest.mark.parametrize(
    ("arms", "shard_rows", "embeds"),
    [
        # A training is two processes that import torch, and an actor of a shard one.
        pytest.param(["b3"], 100_000, "shard", id="one arm"),
        pytest.param(
            ["random", "paper", "b3"], 256, "embed", marks=pytest.mark.slow, id="three arms"
        ),
    ],
)
def test_run_then_run_again_then_verify(
    b3, command, write_config, tmp_path, arms, shard_rows, embeds
):
    config = write_config(arms=arms, compute={"workers": 1, "shard_rows": shard_rows})
    first = json.loads(b3("run", config, "--json").stdout)
    assert [row["arm"] for row in first["arms"]] == arms
    assert len({row["examples_seen"] for row in first["arms"]}) == 1
    for row in first["arms"]:
        assert 0 <= row["hit@1"] <= row["hit@10"] <= 1 and row["hit@1"] <= row["mrr"]
    if "random" in arms:
        assert first["difference"]["mrr"] == first["differences"]["b3 - random"]
    assert first["manifest"] == first["manifests"][-1]
    assert {embeds, "ranks", "train", "evaluate"} <= first["seconds"].keys()

    before = records(tmp_path / "store")
    code, out, err = command("run", config, "--json")
    assert code == 0 and "up to date" in err
    same = json.loads(out)
    assert same["up_to_date"]
    assert records(tmp_path / "store") == before
    assert same["arms"] == first["arms"] and same["manifests"] == first["manifests"]

    student = tmp_path / "student"
    code, out, _ = command("run", config)
    assert f"student of b3: {first['students'][-1]}" in out
    assert command("export", first["students"][-1], student)[0] == 0
    assert SentenceTransformer(str(student)).encode(["a text"]).shape == (1, 32)
    code, _, err = command("export", first["students"][-1], student)
    assert code == 2 and "there already" in err

    for uri in first["manifests"]:
        assert command("verify", uri)[1].startswith("sound: ")
    head = next((tmp_path / "store").glob("small/manifest/*/batches-*.parquet"))
    head.write_bytes(head.read_bytes()[:-1] + b"?")
    broken = [command("verify", uri) for uri in first["manifests"]]
    assert sorted(code for code, *_ in broken) == [0] * (len(arms) - 1) + [1]
    assert any("is not what was recorded" in said for *_, said in broken)


@pytest.mark.slow
def test_workers_and_shards_change_no_byte(b3, write_config, tmp_path):
    hashes = []
    for workers, shard_rows in ((1, 100_000), (2, 256)):
        store = tmp_path / f"store-{workers}"
        config = write_config(
            store={"root": str(store)}, compute={"workers": workers, "shard_rows": shard_rows}
        )
        b3("mine", config)
        hashes.append(manifest_hashes(store))
    assert len(hashes[0]) == 3
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_several_datasets_share_a_manifest_and_one_that_changes_is_mined_alone(
    b3, write_config, tmp_path, dataset
):
    other = tmp_path / "other.parquet"
    pq.write_table(topic_table(300, seed=1), other)
    columns = {"query": "question", "positive": "answer"}
    datasets = [
        {"name": "faq", "uri": str(dataset), **columns},
        {"name": "forum", "uri": str(other), **columns},
    ]
    config = write_config(datasets=datasets, arms=["b3"])
    first = json.loads(b3("mine", config, "--json").stdout)
    before = records(tmp_path / "store")
    assert {record["dataset"] for record in before.values()} == {"faq", "forum", "small"}

    pq.write_table(topic_table(310, seed=1), other)
    second = json.loads(b3("mine", config, "--json").stdout)
    new = set(records(tmp_path / "store")) - set(before)
    assert first["manifest"] != second["manifest"]
    assert {path.split("/")[0] for path in new} == {"forum", "small"}


@pytest.mark.slow
def test_data_and_store_in_s3_give_the_batches_of_local_ones(b3, write_config, tmp_path, s3_bucket):
    datasets = json.loads(write_config().read_text())["datasets"]
    s3fs.S3FileSystem().put_file(datasets[0]["uri"], f"{s3_bucket}/data/pairs.parquet")
    remote = [datasets[0] | {"uri": f"{s3_bucket}/data/"}]
    config = write_config(datasets=remote, store={"root": f"{s3_bucket}/store"}, arms=["b3"])
    mined = b3("mine", config, "--json")
    uri = json.loads(mined.stdout)["manifest"]
    assert uri.startswith(f"{s3_bucket}/store/small/manifest/")
    assert "testing" not in mined.stdout + mined.stderr
    assert b3("verify", uri).stdout.startswith("sound: ")
    assert json.loads(b3("mine", config, "--json").stdout)["up_to_date"]

    b3("mine", write_config(arms=["b3"]))
    (local,) = (r for r in records(tmp_path / "store").values() if r["stage"] == "manifest")
    record = json.loads(s3fs.S3FileSystem().cat_file(f"{uri}/record.json"))
    assert record["files"]["batches-00000.parquet"] == local["files"]["batches-00000.parquet"]


def test_rows_in_another_order_are_mined_without_a_teacher(command, write_config, dataset):
    config = write_config(arms=["b3"], compute={"shard_rows": 100_000})
    code, first, err = command("mine", config, "--json")
    assert code == 0, err
    table = pq.read_table(dataset)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), dataset)
    code, second, err = command("mine", config, "--json")
    assert code == 0, err
    assert json.loads(first)["manifest"] != json.loads(second)["manifest"]
    assert "shard" in json.loads(first)["seconds"] and "shard " not in err and "embed " not in err
    assert command("verify", json.loads(second)["manifest"])[1].startswith("sound: ")


def test_what_a_mining_leaves_to_later_legs_is_said(command, write_config):
    phases = [{"epochs": 1}, {"epochs": 1, "refresh": True}]
    config = write_config(
        arms=["b3"], batches={"batch_size": 32, "curriculum": phases}, compute={"shard_rows": 4096}
    )
    code, out, err = command("mine", config, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["legs"], found["manifest_legs"]) == (2, [found["manifest"]])
    out = command("mine", config)[1]
    assert "leg 0 of its curriculum" in out and "Later legs are mined with the student" in out


@pytest.mark.slow
def test_a_curriculum_that_refreshes_mines_with_its_student(b3, write_config, tmp_path):
    phases = [{"epochs": 1}, {"epochs": 1, "refresh": True}]
    anew = {"name": "anew", "batches": {"curriculum": phases}}
    config = write_config(arms=["random", anew], seeds=[0, 1])
    found = json.loads(b3("run", config, "--json").stdout)
    assert len(found["manifests"]) == 6  # four, and two that the students of one epoch mined
    assert len(found["students"]) == 4
    assert len({row["examples_seen"] for row in found["arms"]}) == 1
    store = tmp_path / "store"
    first, second = (
        Manifest.read_head(open_artifact(found["manifests"][place])) for place in (2, 4)
    )
    weights = [head["datasets"][0]["teacher"]["weights"] for head in (first, second)]
    assert (store / "small/student" / weights[1]).is_dir() and weights[0] != weights[1]
    assert weights[1] not in {uri.rsplit("/", 1)[1] for uri in found["students"]}  # not the final
    for uri in found["manifests"]:
        assert b3("verify", uri).stdout.startswith("sound: ")
    assert json.loads(b3("run", config, "--json").stdout)["up_to_date"]


@pytest.mark.slow
def test_a_gateway_that_ignores_conditions_serves_one_writer(
    b3, write_config, gateway_bucket, tmp_path
):
    root = f"{gateway_bucket}/store"
    refused = b3("mine", write_config(store={"root": root}), check=False)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].endswith("store.single_writer: true")
    config = write_config(store={"root": root, "single_writer": True}, arms=["b3"])
    uri = json.loads(b3("mine", config, "--json").stdout)["manifest"]
    assert b3("verify", uri, TMPDIR=str(tmp_path)).stdout.startswith("sound: ")
    found = json.loads(b3("gc", root, "--hours", "0", "--json", TMPDIR=str(tmp_path)).stdout)
    nothing = {"orphans": [], "bytes": 0, "drafts": [], "drafts_bytes": 0}  # but what verify read
    assert found.items() >= {**nothing, "deleted": False, "seconds": {}}.items()
    assert found["copies"]
    assert all(Path(copy).is_relative_to(tmp_path) for copy in found["copies"])
    assert found["copies_bytes"] == sum(Path(copy).stat().st_size for copy in found["copies"])
    compared = json.loads(b3("diff", uri, uri, "--json").stdout)
    assert compared["datasets"]["faq"]["communities"]["partners_kept"] == 1.0


def test_classification_is_mined_by_labels(command, write_config, tmp_path, dataset):
    """Positives are label texts: no row meets its own label in a community of mined rows.

    Nor has any a window to draw hard negatives from; the batches beside it have theirs.
    """
    rng = np.random.default_rng(0)
    words = ["river", "engine", "violin", "harbour", "library", "orchard", "tunnel", "market"]
    labels = [f"{word} {place}" for word in words for place in ("north", "south", "east")]
    picks = rng.integers(0, len(labels), 660)
    table = pa.table(
        {
            "text": [f"{labels[p]} seen in week {i}" for i, p in enumerate(picks)],
            "label": [labels[p] for p in picks],
            "group": picks,
        }
    )
    pq.write_table(table.slice(60), tmp_path / "labelled.parquet")
    pq.write_table(table.slice(30, 60), tmp_path / "heldout.parquet")  # half of it is in both
    places = {
        "name": "places",
        "uri": str(tmp_path / "labelled.parquet"),
        "eval_uri": str(tmp_path / "heldout.parquet"),
        "query": "text",
        "positive": "label",
        "task": "classification",
    }
    config = write_config(
        datasets=[
            places,
            {"name": "faq", "uri": str(dataset), "query": "question", "positive": "answer"},
        ],
        arms=["same-dataset", "b3", "b3++", "random"],
        mining={"k": 8, "m": 40},
        compute={"shard_rows": 100_000},  # a single shard needs no Ray
    )
    code, out, err = command("mine", config, "--json")
    assert code == 0, err
    said = "30 of 60 held-out rows of places are trained on"
    assert json.loads(out)["warnings"] == [said]
    assert f"warning: {said}\n" in err
    uris = json.loads(out)["manifests"]
    heads = [Manifest.read_head(open_artifact(uri)) for uri in uris]
    drawn, mined, *_ = (head["datasets"][0]["quality"][0] for head in heads)
    assert drawn["same_group"] > 0.1 > mined["same_group"]
    assert mined["window"] > 1.4 * drawn["window"]  # most rows of a random community are near too
    for uri in uris[2:]:
        assert command("verify", uri)[1].startswith("sound: ")
    across = [Manifest.load(open_artifact(uri)).plan.is_across for uri in uris]
    assert across == [False, False, False, True]  # random: rows of both in a batch
    hard = Manifest.load(open_artifact(uris[2]))
    of_places = hard.negatives.row_SBH[hard.plan.dataset_S == 0]
    assert (of_places == -1).all() and of_places.shape[2] == 5
    assert (hard.negatives.row_SBH[hard.plan.dataset_S == 1] >= 0).mean() > 0.5


def test_batches_that_are_next_to_random_are_warned_of(command, write_config):
    config = write_config(
        mining={"k": 8, "p": 560, "m": 20},  # of 569 ranks a window of 9, at which nobody is near
        arms=["b3"],
        compute={"shard_rows": 100_000},
    )
    code, out, err = command("mine", config)
    assert code == 0, err
    (said,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert "faq: " in said and "leaves a window of 9 ranks, not 20" in said
    assert said.endswith("a smaller mining.p, a stronger teacher, or mining.graph: union (arm b3)")
    assert "manifest of b3" in out and "warning" not in out
