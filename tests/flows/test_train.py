"""No training on a manifest that is not sound: refused before Ray is started."""

import json
import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from b3_core.manifest import Manifest
from b3_core.pairs import PairTable
from b3_core.ray_session import RaySession
from b3_core.store import Address, open_artifact


def forge_row_ids(uri):
    """Give every slot another row's id; files, sizes, hashes and record agree with one another."""
    artifact = open_artifact(uri)
    files = {name: artifact.path(name).read_bytes() for name in artifact.files}
    table = pq.read_table(artifact.path("batches-00000.parquet"))
    size = pq.read_metadata(artifact.path("batches-00000.parquet")).row_group(0).num_rows
    place = table.schema.get_field_index("row_id")
    wrong = table.set_column(place, table.field(place), pc.add(table["row_id"], 1))
    shutil.rmtree(Path(artifact.uri))
    with artifact.store.draft(artifact.address, lineage={}, settings={}) as draft:
        for name, body in files.items():
            draft.path(name).write_bytes(body)
        pq.write_table(wrong, draft.path("batches-00000.parquet"), row_group_size=size)
    return open_artifact(uri)


def test_a_manifest_that_every_rank_would_train_on_is_refused(
    command, write_config, tmp_path, monkeypatch
):
    config = write_config(arms=["random", "b3"], compute={"shard_rows": 100_000})
    code, out, err = command("mine", config, "--json")
    assert code == 0, err
    forged = forge_row_ids(json.loads(out)["manifests"][1])
    entry = Manifest.read_head(forged)["datasets"][0]
    pairs = forged.store.get(Address("faq", "pairs", entry["pairs"]))
    # Nothing that a rank looks at is wrong.
    Manifest.load(forged).check([PairTable.load(pairs, "train")], where="")

    opened = []
    monkeypatch.setattr(RaySession, "_open", lambda self: opened.append(1))
    code, out, err = command("train", config, "--json")
    lines = [line for line in err.splitlines() if line.startswith("b3: ")]
    assert (code, out, len(lines)) == (1, "", 1), err
    assert f"{forged.uri}: column row_id of batches-00000.parquet differs" in lines[0]
    assert not opened and not list((tmp_path / "store").glob("small/student/*"))
