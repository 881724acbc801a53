"""``b3 export``: the whole artifact, or a folder as it was."""

import os

import pytest

from b3_core.artifacts import Address
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.store import ArtifactStore, open_artifact
from flows.export import lay_out

FILES = {"model/a.txt": b"a", "model/sub/b.txt": b"b", "model/z.txt": b"z", "log.txt": b"log"}
COPIED = ["a.txt", "sub", "z.txt"]


@pytest.fixture
def student(tmp_path):
    """A student's URI, and its last file of the model as it lies in the store."""
    address = Address("small", "student", "f00d")
    store = ArtifactStore(str(tmp_path / "store"))
    with store.draft(address, lineage={}, settings={}) as draft:
        for name, body in FILES.items():
            draft.path(name).write_bytes(body)
    place = tmp_path / "store" / address.path
    return str(place), place / store.get(address).files["model/z.txt"].path


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_model_is_copied_to_its_own_names(student, tmp_path, there, monkeypatch):
    folder = tmp_path / "deep" / "student"
    if there:
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
    names = lay_out(open_artifact(student[0]), folder)
    assert sorted(names) == ["a.txt", "sub/b.txt", "z.txt"]
    assert sorted(os.listdir("." if there else folder)) == COPIED
    assert (folder / "sub" / "b.txt").read_bytes() == b"b"


def test_a_corrupt_file_leaves_no_folder(command, student, tmp_path):
    uri, last = student
    last.write_bytes(b"?")
    code, _, err = command("export", uri, tmp_path / "student")
    assert code == 1 and "is not what was recorded" in err
    assert not (tmp_path / "student").exists()


def test_a_corrupt_file_leaves_an_empty_folder_empty(student, tmp_path):
    uri, last = student
    last.write_bytes(b"?")
    folder = tmp_path / "student"
    folder.mkdir()
    with pytest.raises(CorruptArtifactError):
        lay_out(open_artifact(uri), folder)
    assert os.listdir(folder) == []


def test_what_somebody_else_wrote_meanwhile_stays(student, tmp_path, monkeypatch):
    uri, last = student
    last.write_bytes(b"?")
    artifact, folder = open_artifact(uri), tmp_path / "student"
    copy = type(artifact).lay_out

    def disturbed(self, draft, prefix):
        (folder / "note.txt").write_text("mine")
        return copy(self, draft, prefix)

    monkeypatch.setattr(type(artifact), "lay_out", disturbed)
    with pytest.raises(CorruptArtifactError):
        lay_out(artifact, folder)
    assert os.listdir(folder) == ["note.txt"]


@pytest.mark.parametrize("is_file", [False, True], ids=["full", "file"])
def test_what_is_there_is_refused_and_stays(student, tmp_path, is_file):
    folder = tmp_path / "student"
    there = folder if is_file else folder / "note.txt"
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    with pytest.raises(InputError, match="is there already; expected a new or an empty folder"):
        lay_out(open_artifact(student[0]), folder)
    assert there.read_text() == "mine"
