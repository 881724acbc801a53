"""A manifest that is not to be trusted: a few mutants, a few flips, no training.

All kinds and a thousand mutants are in tests/system/test_mutants.py.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from b3_core import train
from b3_core.config import TrainSpec
from b3_core.errors import B3Error, CorruptArtifactError
from b3_core.learn import Student
from b3_core.manifest import verify, verify_before_training
from b3_core.store import open_artifact
from tests.mutants import KINDS, Sound, mutant

SPEC = TrainSpec(student="static", dim=16)
NOT_TRAINED_ON = {
    "row_twice_in_its_batch": "there 0 times|there 2 times",
    "row_beyond_the_table": "a row is none of",
    "batch_of_two_datasets": "rows of several datasets",
    "epoch_missing": "epoch",
    "dataset_digest": "digest is",
    "head_lacks_a_key": "Field required|schema version",
    "file_truncated": "cannot be read",
    "all_of_another_seed": "manifest of other settings",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # how files are laid out is read by it too
        yield Sound(tmp_path_factory.mktemp("sound"), patch, datasets=2)


@pytest.mark.parametrize("name", ["row_id_of_another_row", "negative_twice", *NOT_TRAINED_ON])
def test_a_mutant_is_refused_for_what_is_wrong(sound, name):
    artifact = mutant(sound, name, np.random.default_rng(0))
    for check in (verify, lambda artifact: verify_before_training([artifact])):
        with pytest.raises(B3Error) as caught:
            check(artifact)
        assert re.search(KINDS[name][0], str(caught.value).replace(artifact.uri, "URI"))
        assert "\n" not in str(caught.value)


def test_a_flip_in_every_file_of_the_manifest_and_its_record_is_found(sound):
    artifact = sound.write(sound.parts())
    for file in Path(sound.store.root, artifact.address.path).iterdir():
        body = bytearray(file.read_bytes())
        body[len(body) // 2] ^= 4
        whole = file.read_bytes()
        file.write_bytes(body)
        with pytest.raises(CorruptArtifactError, match=re.escape(file.name)):
            verify(open_artifact(artifact.uri))
        file.write_bytes(whole)
    assert verify(open_artifact(artifact.uri))


def test_no_student_is_trained_on_a_mutant(sound, monkeypatch):
    begun = []
    whole = train.train_student
    monkeypatch.setattr(train, "train_student", lambda *a, **k: begun.append(1) or whole(*a, **k))
    student = Student.of(sound.stage, SPEC)
    rng = np.random.default_rng(0)
    for name, said in NOT_TRAINED_ON.items():
        mutant(sound, name, rng)
        with pytest.raises(B3Error, match=said) as caught:
            student.run(sound.store)
        assert caught.value.exit_code == (2 if "schema version" in str(caught.value) else 1)
    assert not begun and not sound.store.artifacts("small", "student")
    assert not list(Path(sound.store.root).glob("small/student/*"))
    sound.write(sound.parts())
    assert student.run(sound.store).counts["steps"] == len(sound.manifest.plan.row_SB)
    assert begun
