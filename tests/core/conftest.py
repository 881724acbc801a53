"""What the tests of several modules need."""

import pytest

from b3_core.store import ArtifactStore

BUCKETS = {"s3": "s3_bucket", "gateway": "gateway_bucket"}


@pytest.fixture(params=["local", "memory", *BUCKETS])
def store(request, tmp_path):
    """The same contract for every kind of store."""
    if request.param in BUCKETS:
        bucket = request.getfixturevalue(BUCKETS[request.param])
        return ArtifactStore(f"{bucket}/{tmp_path.name}")
    root = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return ArtifactStore(root)
