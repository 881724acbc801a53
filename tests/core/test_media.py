"""Media below one root and nowhere else; 300 hostile files, and what becomes of them."""

import contextlib
import hashlib
import os
import pickle
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from b3_core import media
from b3_core.errors import InputError
from b3_core.media import Item, Look, MediaError, MediaLimits, MediaRoot, look_at
from tests.hostile import (
    EITHER,
    FAULT,
    SOUND,
    Watched,
    bombs,
    damaged,
    lying_videos,
    peaks_of_children,
    playlists,
    png_of,
    three_hundred,
)
from tests.media import CLIPS, clip, corners, png, saved

MIB = 1 << 20


def digest(content):
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def refused(root, file, **options):
    with pytest.raises(MediaError) as caught:
        root.read(file, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """A root with a file, a folder, links inside it, and a link out of it."""
    root = tmp_path / "root"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.png").write_bytes(b"a")
    (root / "deep" / "b.png").write_bytes(b"b")
    (tmp_path / "outside.png").write_bytes(b"secret")
    return root


def test_an_item_is_text_alone_unless_it_says_otherwise():
    assert Item() == Item(text="", kind="", file="")


def test_files_below_the_root_are_read(folder):
    root = MediaRoot(str(folder))
    assert root.read("a.png") == b"a"
    assert root.read("./deep//b.png") == root.read("deep/./b.png") == b"b"
    (folder / "ü 1.png").write_bytes(b"")
    assert root.read("ü 1.png") == b""
    assert pickle.loads(pickle.dumps(root)).read("a.png") == b"a"


def test_links_that_stay_inside_are_followed(folder, tmp_path):
    (folder / "one.png").symlink_to("deep/b.png")
    (folder / "deep" / "er" / "two.png").symlink_to("../../one.png")
    (folder / "absolute.png").symlink_to(folder / "deep" / "b.png")
    (folder / "way").symlink_to("deep/er/..")
    (tmp_path / "alias").symlink_to(folder)
    for root in (MediaRoot(str(folder)), MediaRoot(str(tmp_path / "alias"))):
        for file in ("one.png", "deep/er/two.png", "absolute.png", "way/b.png", "way/er/two.png"):
            assert root.read(file) == b"b"


def test_links_that_lead_out_are_not_followed(folder, tmp_path):
    (folder / "up.png").symlink_to("../outside.png")
    (folder / "around.png").symlink_to("../root/a.png")  # out and in again
    (folder / "deep" / "over.png").symlink_to("er/../../../outside.png")
    (folder / "far.png").symlink_to(tmp_path / "outside.png")
    (folder / "beside.png").symlink_to(f"{folder}-evil/x.png")
    root = MediaRoot(str(folder))
    for file in ("up.png", "around.png", "deep/over.png", "far.png", "beside.png"):
        assert refused(root, file) == "leads out of the media root"


def test_a_link_put_in_place_at_the_last_moment_is_not_followed(folder, tmp_path, monkeypatch):
    """What was looked at is not what is opened: the open itself must not follow."""
    root, stat_of = MediaRoot(str(folder)), os.stat

    def swapped(name, **options):
        found = stat_of(name, **options)
        if name in ("a.png", "deep") and "dir_fd" in options and not options["follow_symlinks"]:
            (folder / name).rename(tmp_path / "away")
            (folder / name).symlink_to(tmp_path / ("outside.png" if name == "a.png" else "."))
        return found

    monkeypatch.setattr(media.os, "stat", swapped)
    assert "cannot be read" in refused(root, "a.png")
    (tmp_path / "away").unlink()
    assert refused(root, "deep/outside.png") == "is not there"


def test_a_pipe_put_in_place_at_the_last_moment_does_not_block(folder, monkeypatch):
    root, stat_of = MediaRoot(str(folder)), os.stat

    def swapped(name, **options):
        found = stat_of(name, **options)
        if name == "a.png":
            (folder / name).unlink()
            os.mkfifo(folder / name)
        return found

    monkeypatch.setattr(media.os, "stat", swapped)
    assert refused(root, "a.png") == "is no regular file"


@pytest.mark.parametrize("moment", range(3))
def test_links_swapped_all_the_time_never_lead_out(folder, tmp_path, moment):
    over = threading.Event()
    spare, place = tmp_path / "spare.png", folder / "deep" / "b.png"

    def swap():
        while not over.is_set():
            for target in ("../../outside.png", "../a.png", tmp_path / "outside.png"):
                spare.symlink_to(target)
                spare.rename(place)
            spare.write_bytes(b"b")
            spare.rename(place)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = Counter()
    try:
        root = MediaRoot(str(folder))
        deadline = time.monotonic() + 20
        # A busy machine may run 300 reads before it swaps anything once.
        while seen.total() < 300 or (len(seen) < 2 and time.monotonic() < deadline):
            try:
                seen[root.read("deep/b.png")] += 1
            except MediaError as error:
                seen[str(error)] += 1
    finally:
        over.set()
        thread.join()
    assert b"secret" not in seen and seen.keys() & {b"a", b"b"} and len(seen) > 1, seen


def test_a_file_that_grows_is_not_read_on(folder, monkeypatch):
    root, fstat = MediaRoot(str(folder), MediaLimits(max_bytes=10)), os.fstat

    def growing(descriptor):
        found = fstat(descriptor)
        with open(folder / "a.png", "ab") as file:
            file.write(bytes(1 << 20))
        return found

    monkeypatch.setattr(media.os, "fstat", growing)
    assert refused(root, "a.png") == "was written to while it was read"


def test_what_is_too_large_is_not_read(folder):
    root = MediaRoot(str(folder), MediaLimits(max_bytes=10))
    for size, kinds in ((10, ["image", "video"]), (11, ["video"]), (160, ["video"])):
        (folder / "a.png").write_bytes(bytes(size))
        assert [root.read("a.png", kind=kind) for kind in kinds] == [bytes(size)] * len(kinds)
    assert refused(root, "a.png", kind="image") == "is larger than 10 bytes"
    os.truncate(folder / "a.png", 1 << 40)
    assert refused(root, "a.png") == "is larger than 160 bytes"


def test_a_fault_of_this_machine_is_no_fault_of_a_file(folder, monkeypatch):
    def out_of_descriptors(*_):
        raise OSError(24, "Too many open files")

    root = MediaRoot(str(folder))
    monkeypatch.setattr(media, "open_below", out_of_descriptors)
    with pytest.raises(OSError, match="Too many open files"):
        root.read("a.png")


def test_no_descriptor_is_left_open(folder):
    (folder / "up.png").symlink_to("../outside.png")
    root = MediaRoot(str(folder))

    def held():
        """What is open below the folder; other threads of this process have files too."""
        links = [Path("/proc/self/fd", each) for each in os.listdir("/proc/self/fd")]
        places = [os.readlink(link) for link in links if link.is_symlink()]
        return sorted(place for place in places if place.startswith(str(folder)))

    before = held()
    for _ in range(20):
        root.read("deep/b.png")
        for file in ("up.png", "deep", "deep/x", "a.png/x"):
            refused(root, file)
    assert held() == before


def test_a_root_is_a_folder_or_a_bucket(folder):
    for root, said in (
        (folder / "a.png", "is no folder"),
        (folder / "missing", "is no folder"),
        ("http://127.0.0.1/x", "is a http:// address"),
        ("file:///tmp", "is a file:// address"),
        ("s3://KEY:hunter2@bucket/x", "carries credentials"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            MediaRoot(str(root))
        assert "hunter2" not in str(caught.value)


def test_media_in_a_bucket(s3_bucket, tmp_path):
    fs = fsspec.filesystem("s3")
    name = s3_bucket.removeprefix("s3://")
    for key in ("root/a.png", "root/deep/b.png", "outside.png", "root-evil/x.png"):
        fs.pipe_file(f"{name}/{key}", png())
    fs.pipe_file(f"{name}/root/empty.png", b"")
    for slash in ("", "/"):
        root = MediaRoot(f"{s3_bucket}/root{slash}", MediaLimits(max_bytes=len(png())))
        assert root.read("a.png") == root.read("./deep//b.png") == png()
        assert root.read("empty.png") == b""
        assert refused(root, "deep") == "is no regular file"
        assert refused(root, "b.png") == refused(root, "deep/b.png/x") == "is not there"
        for file in ("../outside.png", "deep/../../outside.png", "/outside.png", f"{s3_bucket}/x"):
            assert refused(root, file) in {
                "leads out of the media root",
                "is an absolute path; media are files below the media root",
                "is a URL; media are files below the media root",
            }
    fs.pipe_file(f"{name}/root/a.png", png() + b"\0")
    assert refused(root, "a.png", kind="image") == f"is larger than {len(png())} bytes"
    looks = look_at(f"{s3_bucket}/root", [("image", "deep/b.png"), ("image", "x.png")])
    assert looks == [Look(digest(png()), ""), Look("", "is not there")]


def test_a_bucket_or_prefix_that_is_not_there_is_no_root(s3_bucket):
    for root in (f"{s3_bucket}-missing/root", f"{s3_bucket}/missing"):
        for used in (MediaRoot, lambda root: look_at(root, [("image", "a.png")])):
            with pytest.raises(InputError, match=f"media root {root} is no folder"):
                used(root)


def test_sound_media_of_every_kind_pass(tmp_path):
    bodies = {("video", f"clip.{format}"): clip(5, format=format) for format in CLIPS}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        bodies["image", f"{mode}.png"] = saved(corners(mode))
    for mode in ("L", "RGB", "CMYK"):
        bodies["image", f"{mode}.jpg"] = saved(corners(mode), "JPEG")
    for format in ("WEBP", "GIF", "BMP", "TIFF"):
        bodies["image", f"x.{format}"] = saved(corners(), format)
    for (_, file), body in bodies.items():
        (tmp_path / file).write_bytes(body)
    asked, told = [*bodies, *list(bodies)[:5]], []
    looks = look_at(str(tmp_path), asked, workers=2, progress=lambda *at: told.append(at))
    assert looks == [Look(digest(bodies[medium]), "") for medium in asked]
    assert told[-1] == (len(bodies), len(bodies))


def test_looking_needs_a_root_and_decoders(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is no folder"):
        look_at(str(tmp_path / "missing"), [])
    assert look_at(str(tmp_path), []) == []
    (looked,) = look_at(str(tmp_path), [("", "x.png")])
    assert looked == Look("", "is not there")
    monkeypatch.setattr(media.importlib.util, "find_spec", lambda name: name != "av" or None)
    assert look_at(str(tmp_path), [("image", "x.png")])[0].fault == "is not there"
    with pytest.raises(InputError, match=r"package av is not installed.*b3-batches\[vision\]"):
        look_at(str(tmp_path), [("video", "x.mp4")])


def test_an_image_for_which_memory_does_not_suffice_costs_itself(tmp_path):
    (tmp_path / "small.png").write_bytes(png())
    (tmp_path / "large.png").write_bytes(png_of(6000, 6000))
    media_ = [("image", f"{'large.png' if i == 3 else 'small.png'}") for i in range(6)]
    looks = look_at(str(tmp_path), media_, memory=128 * MIB)
    assert [look.fault for look in looks] == [
        "it takes more than 128 MiB of memory" if i == 3 else "" for i in range(6)
    ]
    assert not any(look.fault for look in look_at(str(tmp_path), media_))


def test_three_hundred_hostile_media(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        hostile = three_hundred(root, outside, server.getsockname()[1])
        asked = [(each.kind, each.file) for each in hostile]
        assert len(hostile) == 300
        watched = Watched(outside, Path(f"{root}-evil"))
        with peaks_of_children() as peak_of:
            looks = look_at(str(root), asked, workers=2, memory=512 * MIB, seconds=30)
        assert watched.opened() == set()
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
        # What watches does see, and what listens does hear.
        with open(outside / "canary.png", "rb"):
            assert watched.opened() == {str(outside / "canary.png")}
        with socket.create_connection(server.getsockname()):
            server.accept()[0].close()
    watched.close()
    wrong = [
        (each, look)
        for each, look in zip(hostile, looks, strict=True)
        if (each.must == FAULT and not look.fault) or (each.must == SOUND and look.fault)
    ]
    assert not wrong
    unread = {"path", "special file"}
    for each, look in zip(hostile, looks, strict=True):
        assert bool(look.digest) == (each.about not in unread), (each, look)
        assert "\n" not in look.fault and len(look.fault) < 300
    harmless = Counter(
        each.about
        for each, look in zip(hostile, looks, strict=True)
        if each.must == EITHER and not look.fault
    )
    # A lost bit of a pixel is another pixel; a lost tail may be one that nobody reads.
    assert harmless["flipped bits"] <= 30 and harmless["cut short"] <= 15, harmless
    assert len(peak_of) >= 2 and 20 < max(peak_of.values()) < 512


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_found_of_hostile_media_depends_on_no_number_of_processes(tmp_path, seed):
    root = tmp_path / "root"
    hostile = three_hundred(root, tmp_path / "outside", 9, seed=seed)
    asked = [(each.kind, each.file) for each in hostile]
    looks = [look_at(str(root), asked, workers=n, memory=512 * MIB) for n in (1, 3)]
    assert looks[0] == looks[1] and len(looks[0]) == 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_more_cuts_and_flips(tmp_path, seed):
    """Whatever the damage: a look for each, the same for one process and for several."""
    bodies = damaged(seed, 600)
    for name, (_, body) in bodies.items():
        (tmp_path / name).write_bytes(body)
    asked = [(kind, name) for name, (kind, _) in bodies.items()]
    looks = look_at(str(tmp_path), asked, workers=2, memory=512 * MIB, seconds=30)
    for look, (_, body) in zip(looks, bodies.values(), strict=True):
        ended = look.fault.startswith(("it takes more than 512 MiB", "its process was ended"))
        assert look.digest == ("" if ended else digest(body)), look
    assert looks == look_at(str(tmp_path), asked, workers=1, memory=512 * MIB, seconds=30)


def test_decoding_opens_nothing():
    """In this process: no file, no address, whatever the bytes say (a hook cannot be removed)."""
    seen, on, own = [], [True], threading.get_ident()

    def hook(event, args):
        if threading.get_ident() != own:  # Prefect's, where commands were run before
            return
        if on[0] and event in ("open", "socket.connect", "subprocess.Popen", "os.system"):
            seen.append((event, args))

    for body, decode in ((png(), media.decode_image), (clip(5), media.decode_frames)):
        decode(body)  # what is imported once
    for format in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        media.decode_image(saved(corners(), format))
    sys.addaudithook(hook)
    try:
        for body in [*bombs().values(), *lying_videos().values()]:
            for decode in (media.decode_image, media.decode_frames):
                with contextlib.suppress(MediaError, MemoryError):
                    decode(body)
        for body in playlists(Path("/etc/passwd"), 9).values():
            for decode in (media.decode_image, media.decode_frames):
                with pytest.raises(MediaError):
                    decode(body)
        quiet = list(seen)
        with open(os.devnull, "rb"):
            assert len(seen) > len(quiet)
    finally:
        on[0] = False
    assert not quiet
