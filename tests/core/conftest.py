"""What the tests of several modules need."""

import pytest
import torch

from b3_core import embed, reading
from b3_core.store import ArtifactStore

BUCKETS = {"s3": "s3_bucket", "gateway": "gateway_bucket"}


# The gateway takes a second a test.
SLOW = pytest.param("gateway", marks=pytest.mark.slow)


@pytest.fixture(params=["local", "memory", "s3", SLOW])
def store(request, tmp_path):
    """The same contract for every kind of store."""
    if request.param in BUCKETS:
        bucket = request.getfixturevalue(BUCKETS[request.param])
        return ArtifactStore(f"{bucket}/{tmp_path.name}")
    root = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return ArtifactStore(root)


@pytest.fixture
def one_looker(monkeypatch):
    """Media are decoded in one process: starting more takes longer than a few pictures do."""
    monkeypatch.setattr(reading, "_LOOKERS", 1)


@pytest.fixture(scope="module")
def one_teacher():
    """A teacher is loaded once, as a warm worker loads it, and not once a shard."""
    load, kept = embed._load_teacher, {}

    def once(store, spec, student):
        if student is not None:
            return load(store, spec, student)
        if spec not in kept:
            kept[spec] = load(store, spec, student)
        return kept[spec]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "_load_teacher", once)
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Small products on several threads mostly wait, and beside other processes for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
