"""What the tests of several modules need."""

import pytest
import torch

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


@pytest.fixture(scope="module")
def one_thread():
    """Small products on several threads mostly wait, and beside other processes for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
