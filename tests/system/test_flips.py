"""One bit flipped in 500 places of stored files: ``verify`` finds each, and names the artifact."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from b3_core.config import BatchSpec, Phase
from b3_core.errors import B3Error
from b3_core.manifest import Manifest, verify
from b3_core.store import open_artifact
from tests.core.test_manifest import mine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLIPS = 500
BY_COMMAND = ("batches-00000", "pairs/", "ranks/")  # a file of each is flipped before a command


@pytest.fixture
def mined(tmp_path):
    phases = (Phase(random_share=1), Phase(epochs=2))
    store, stage = mine(tmp_path, BatchSpec(batch_size=8, curriculum=phases, negatives=2))
    return store, store.get(stage.address)


def stored_files(store, artifact):
    """Every file that a manifest stands on, records included, below the store's root."""
    folders = [artifact.address.path, *Manifest.read_head(artifact)["lineage"]]
    root = Path(store.root)
    files = [file for folder in folders for file in (root / folder).rglob("*") if file.is_file()]
    assert sum(file.name == "record.json" for file in files) == len(folders)
    return sorted(file.relative_to(root) for file in files)


def flipped(file, rng):
    """Flip a bit of a byte of a file; return what the file held."""
    body = file.read_bytes()
    changed = bytearray(body)
    changed[rng.integers(len(body))] ^= 1 << rng.integers(8)
    file.write_bytes(changed)
    return body


def test_every_flip_is_found(mined):
    store, artifact = mined
    files = stored_files(store, artifact)
    rng = np.random.default_rng(0)
    picked, found = Counter(), Counter()
    missed = []
    for _ in range(FLIPS):
        path = files[rng.integers(len(files))]
        file = Path(store.root, path)
        label = f"{path.parts[1]}/{path.name.split('.')[0]}"
        picked[label] += 1
        body = flipped(file, rng)
        try:
            verify(open_artifact(artifact.uri))
        except B3Error as error:  # any other error is a failure
            said = str(error)
            assert "\n" not in said and "/".join(path.parts[:3]) in said, said
            found[label] += 1
        else:
            missed.append(str(path))
        finally:
            file.write_bytes(body)
    figures = {"flipped": FLIPS, "found": found.total(), "by_file": dict(sorted(found.items()))}
    print(json.dumps(figures))
    assert not missed and found == picked
    # Each file was among those picked, and what is restored is sound.
    assert len(picked) == len({(path.parts[1], path.name.split(".")[0]) for path in files})
    assert verify(open_artifact(artifact.uri))


def test_the_command_says_so_in_one_line(mined, b3):
    store, artifact = mined
    files = stored_files(store, artifact)
    rng = np.random.default_rng(1)
    chosen = [next(path for path in files if part in str(path)) for part in BY_COMMAND]
    chosen.append(next(path for path in files if path.name == "record.json"))
    for path in chosen:
        file = Path(store.root, path)
        body = flipped(file, rng)
        done = b3("verify", artifact.uri, check=False)
        file.write_bytes(body)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("b3: ") and done.stderr.count("\n") == 1, done.stderr
        assert path.name in done.stderr
    assert "sound: " in b3("verify", artifact.uri).stdout
