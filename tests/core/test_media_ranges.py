"""A medium that is part of a file, as members of tars and packed bytes are."""

from pathlib import Path

import pytest

from b3_core.media import MediaError, MediaLimits, MediaRoot, look_at
from tests.media import png


def test_a_range_is_read_and_nothing_beside_it(tmp_path: Path) -> None:
    first, second = png("red"), png("blue", (5, 5))
    (tmp_path / "both").write_bytes(first + second)
    root = MediaRoot(str(tmp_path))
    assert root.read("both", start=len(first), size=len(second)) == second
    assert root.read("both", start=len(first)) == second
    assert root.read("both") == first + second
    with pytest.raises(MediaError, match="ends at byte"):
        root.read("both", start=len(first), size=len(second) + 1)
    with pytest.raises(MediaError, match="ends at byte"):
        root.read("both", start=-1, size=3)
    places = [
        ("image", "both", 0, len(first)),
        ("image", "both", len(first), len(second)),
        ("image", "both", 1, len(first)),
    ]
    looks = look_at(str(tmp_path), places)
    assert [bool(look.fault) for look in looks] == [False, False, True]
    assert len({look.digest for look in looks}) == 3


def test_a_range_counts_for_its_own_size(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(10_000) + png("red"))
    root = MediaRoot(str(tmp_path), MediaLimits(max_bytes=1000))
    with pytest.raises(MediaError, match="larger than 1,000 bytes"):
        root.read("large", kind="image")
    assert root.read("large", kind="image", start=10_000) == png("red")
