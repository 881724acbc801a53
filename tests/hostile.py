"""Three hundred media files that nobody should trust, and places nobody should open."""

import contextlib
import ctypes
import io
import os
import random
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.media import clip, corners, png, saved

FAULT, EITHER, SOUND = "fault", "either", "sound"
FORMATS = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 90}),
    "webp": ("WEBP", {"lossless": True}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
_HUGE = 50_000
_UNHEARD = {"long.mp4", "width.avi", "frames.avi"}  # lies that nobody listens to


@dataclass(frozen=True)
class Hostile:
    """A medium, and what must become of it."""

    kind: str
    file: str
    must: str
    about: str


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(length: int) -> bytes:
    """Return so many zeros as zlib packs them: a packed mebibyte, again and again."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = zlib.compressobj(9, wbits=-15)
    rest = tail.compress(bytes(length % (1 << 20))) + tail.flush()
    check = struct.pack(">HH", length % 65_521, 1)  # adler32 of zeros
    return b"\x78\x9c" + block * (length >> 20) + rest + check


def png_of(width: int, height: int, *, inflated: int = 0, extra: bytes = b"") -> bytes:
    """Return a PNG of zeros, or of more of them than its size asks for."""
    body = zeros(inflated or (1 + width) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + extra
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def huge_headers() -> dict[str, bytes]:
    """Return small files whose headers say 50,000 x 50,000 px or the like."""
    jpeg = bytearray(saved(corners(), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", _HUGE, _HUGE)
    gif = bytearray(saved(corners("P"), "GIF"))
    gif[6:10] = struct.pack("<HH", _HUGE, _HUGE)
    frame = bytearray(saved(corners("P"), "GIF"))  # the frame, beyond its screen
    at = frame.index(b",", 13 + 3 * 2 ** ((frame[10] & 7) + 1))
    frame[at + 5 : at + 9] = struct.pack("<HH", _HUGE, _HUGE)
    bmp = bytearray(saved(corners(), "BMP"))
    bmp[18:26] = struct.pack("<ii", _HUGE, _HUGE)
    runs = bytearray(saved(corners("P"), "BMP"))  # RLE8: skip 255 rows of 50 million, for ever
    runs[18:26] = struct.pack("<ii", _HUGE * 1000, 1)
    runs[30:34] = struct.pack("<I", 1)
    start = struct.unpack("<I", runs[10:14])[0]
    runs[start:] = b"\0\2\0\xff" * 64
    tiff = bytearray(saved(corners(), "TIFF"))
    at = struct.unpack("<I", tiff[4:8])[0]
    for place in range(at + 2, at + 2 + 12 * struct.unpack("<H", tiff[at : at + 2])[0], 12):
        if struct.unpack("<H", tiff[place : place + 2])[0] in (256, 257):
            tiff[place : place + 12] = tiff[place : place + 2] + struct.pack("<HII", 4, 1, _HUGE)
    canvas = struct.pack("<I", 16_383)[:3] * 2
    webp = (
        b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + canvas + saved(corners(), "WEBP")[12:]
    )
    wide = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff" * 6
    return {
        "header.png": png_of(4, 4).replace(
            struct.pack(">II", 4, 4), struct.pack(">II", _HUGE, _HUGE)
        ),
        "header.jpg": bytes(jpeg),
        "header.gif": bytes(gif),
        "frame.gif": bytes(frame),
        "header.bmp": bytes(bmp),
        "runs.bmp": bytes(runs),
        "header.tiff": bytes(tiff),
        "header.webp": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "canvas.webp": b"RIFF" + struct.pack("<I", len(wide)) + wide,
    }


def bombs() -> dict[str, bytes]:
    """Return small files that inflate to much: whole ones, not only headers."""
    text = chunk(b"zTXt", b"bomb\0\0" + zeros(200 << 20))
    profile = chunk(b"iCCP", b"bomb\0\0" + zeros(200 << 20))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(50 << 20))
    strip = zeros(_HUGE * _HUGE)
    tags = [(256, _HUGE), (257, _HUGE), (258, 8), (259, 8), (262, 1), (273, 0), (278, _HUGE)]
    tags.append((279, len(strip)))
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value or 10 + 12 * len(tags) + 4) for tag, value in tags
    )
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + strip
    return {
        "bomb.png": png_of(_HUGE, _HUGE),
        "text.png": png_of(4, 4, extra=text),
        "profile.png": png_of(4, 4, extra=profile),
        "bomb.tiff": tiff,
        "zip.png": archive.getvalue(),
        "gzip.jpg": b"\x1f\x8b\x08" + zlib.compress(bytes(10 << 20)),
    }


def lying_videos() -> dict[str, bytes]:
    """Return clips whose headers say what is not so."""
    mp4 = clip(20)

    def patched(name: bytes, offset: int, body: bytes, content: bytes = mp4) -> bytes:
        changed = bytearray(content)
        at = changed.index(name) + offset
        changed[at : at + len(body)] = body
        return bytes(changed)

    hours = struct.pack(">I", 36_000 * 1000)
    avi = clip(20, format="avi")
    return {
        "long.mp4": patched(b"mvhd", 20, hours),
        "samples.mp4": patched(b"stsz", 8, struct.pack(">II", 1, 0x7FFFFFFF)),
        "sizes.mp4": patched(b"stsz", 12, struct.pack(">I", 0x7FFFFFFF)),
        "times.mp4": patched(b"stts", 16, struct.pack(">I", 0x7FFFFFFF)),
        "chunks.mp4": patched(b"stco", 12, b"\x7f" * 4),
        "width.avi": patched(b"strf", 12, struct.pack("<ii", _HUGE, _HUGE), avi),
        "frames.avi": patched(b"avih", 24, struct.pack("<I", 0x7FFFFFFF), avi),
        "length.avi": patched(b"strh", 40, struct.pack("<I", 0x7FFFFFFF), avi),
        "screen.gif": patched(b"GIF89a", 6, b"\xff\xff\xff\xff", clip(20, format="gif")),
    }


def playlists(canary: Path, port: int) -> dict[str, bytes]:
    """Return texts that a player would take for the address of what to play."""
    url = f"http://127.0.0.1:{port}/x.ts"
    bodies = {}
    for place, target in (("local", canary), ("file", f"file://{canary}"), ("http", url)):
        bodies[f"{place}.m3u8"] = (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
        )
        bodies[f"{place}.ffconcat"] = f"ffconcat version 1.0\nfile '{target}'\n"
        bodies[f"{place}.mpd"] = (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
            f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>"
        )
        bodies[f"{place}.svg"] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
            f'<image xlink:href="{target}" width="9" height="9"/></svg>'
        )
    bodies["rtp.sdp"] = (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    )
    bodies["script.eps"] = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    return {name: body.encode() for name, body in bodies.items()}


def paths(root: Path, outside: Path, port: int) -> list[str]:
    """Return names that are no files below the root, most of them of files that are there."""
    canary = outside / "canary.png"
    up = os.path.relpath(canary, root)
    return [
        *(
            "",
            ".",
            "./",
            "/",
            "..",
            "../",
            "a\0.png",
            "deep",
            "deep/",
            "/etc/passwd",
            "//etc/passwd",
        ),
        *(str(canary), f"/{canary}", up, f"deep/../{up}", f"./{up}", f"deep/../../{outside.name}"),
        *(f"deep//../../{outside.name}/canary.png", f"..\\{outside.name}\\canary.png", "..\\x.png"),
        *("C:\\x.png", "c:/windows/x.png", "\\\\host\\share\\x.png", f"file://{canary}"),
        *(f"file:{canary}", f"FILE:///{canary}", "data:image/png;base64,iVBORw0KGgo="),
        *(f"http://127.0.0.1:{port}/x.png", f"https://127.0.0.1:{port}/x.png"),
        *(f"HTTP://127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/", "s3://bucket/x"),
        *(f"ftp://127.0.0.1:{port}/x", f"tcp://127.0.0.1:{port}", f"concat:{canary}|{canary}"),
        *(
            "pipe:0",
            "fd:0",
            "/dev/stdin",
            "/proc/self/environ",
            "/dev/zero",
            "subfile:x",
            "gopher://x/",
        ),
        *("good.png/x.png", "good.png/", "good.png/.", "good.png/../good.png", "missing/x.png"),
        *("x" * 255 + ".png", "x/" * 5000 + "x.png", "\ud800.png", "a\n.png", "%2e%2e/x.png"),
        *("..%2fx.png", "．．/x.png", "~/x.png", "$HOME/x.png", "good.png\0.txt", "GOOD.PNG "),
    ]


def special_files(root: Path, outside: Path) -> list[str]:
    """Make links out of the root, and what is no file; return their names."""
    links = {
        "passwd.png": "/etc/passwd",
        "absolute.png": str(outside / "canary.png"),
        "sibling.png": f"../{outside.name}/canary.png",
        "deep/up.png": f"../../{outside.name}/canary.png",
        "folder": str(outside),
        "deep/folder": f"../../{outside.name}",
        "above": "..",
        "self.png": "self.png",
        "there.png": "back.png",
        "back.png": "there.png",
        "chained.png": "sibling.png",
        "bent.png": f"deep/../../{outside.name}/canary.png",
        "nowhere.png": "nothing.png",
        "zero.png": "/dev/zero",
        "environ.png": "/proc/self/environ",
        "prefix.png": f"{root}-evil/canary.png",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    for name in ("pipe.png", "pipe.mp4", "deep/pipe.png"):
        os.mkfifo(root / name)
    os.mkfifo(outside / "pipe")
    (root / "piped.png").symlink_to(outside / "pipe")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(root):
        server.bind("socket.png")
    (root / "folder.png").mkdir()
    os.truncate(os.open(root / "sparse.png", os.O_CREAT | os.O_WRONLY), 3 << 30)
    os.truncate(os.open(root / "sparse.mp4", os.O_CREAT | os.O_WRONLY), 3 << 30)
    through = [f"{folder}/canary.png" for folder in ("folder", "deep/folder")]
    through += [f"above/{outside.name}/canary.png", "above/above/etc/passwd", "self.png/x.png"]
    more = ["pipe.png", "pipe.mp4", "deep/pipe.png", "piped.png", "socket.png", "folder.png"]
    return [*links, *through, *more, "sparse.png", "sparse.mp4"]


def damaged(seed: int, count: int) -> dict[str, tuple[str, bytes]]:
    """Return files cut short at random places, and files with flipped bits: name -> kind, bytes."""
    dice = random.Random(seed)
    sound = {
        name: ("image", saved(corners(size=(64, 48)), format, **options))
        for name, (format, options) in FORMATS.items()
    }
    for format in ("mp4", "webm", "avi", "mov", "matroska", "mpegts"):
        sound[format] = ("video", clip(10, format=format))
    files = {}
    for number in range(count):
        name = list(sound)[number // 2 % len(sound)]
        kind, body = sound[name]
        changed = bytearray(body)
        if number % 2:
            for _ in range(dice.choice((1, 8, 64))):
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        else:
            del changed[dice.randrange(len(changed)) :]
        files[f"{'flipped' if number % 2 else 'cut'}-{number}.{name}"] = (kind, bytes(changed))
    return files


def three_hundred(root: Path, outside: Path, port: int, *, seed: int = 0) -> list[Hostile]:
    """Write 300 hostile media below a root, beside a folder whose files must not be opened."""
    (root / "deep").mkdir(parents=True)
    for folder in (outside, Path(f"{root}-evil")):
        folder.mkdir()
        (folder / "canary.png").write_bytes(png())
        (folder / "canary.mp4").write_bytes(clip(5))
    (root / "good.png").write_bytes(png())
    found = [Hostile("image", name, FAULT, "path") for name in paths(root, outside, port)] + [
        Hostile("video" if name.endswith("mp4") else "image", name, FAULT, "special file")
        for name in special_files(root, outside)
    ]

    def add(kind: str, name: str, body: bytes, about: str, must: str = FAULT) -> None:
        (root / name).write_bytes(body)
        found.append(Hostile(kind, name, must, about))

    wrong = {
        "text": b"hello, world\n" * 100,
        "html": b"<!DOCTYPE html><html><img src='/etc/passwd'></html>",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "script": b"#!/bin/sh\ntouch /tmp/pwned\n",
        "pickle": b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
        "empty": b"",
        "byte": b"\x89",
        "sign": b"\x89PNG\r\n\x1a\n",
        "psd": b"8BPS\0\1" + bytes(100),
        "fits": b"SIMPLE  =                    T" + bytes(100),
        "ico": b"\0\0\1\0\1\0" + bytes(100),
        "sound": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0" + bytes(40),
    }
    for name, body in wrong.items():
        add("image", f"{name}.as.png", body, "wrong type")
        add("video", f"{name}.as.mp4", body, "wrong type")
    add("video", "image.as.mp4", png(), "wrong type")
    add("image", "video.as.png", clip(5), "wrong type")
    for name, body in huge_headers().items():
        add("image", name, body, "huge header")
    for name, body in bombs().items():
        add("image", name, body, "bomb")
    for name, body in lying_videos().items():
        add("video", name, body, "lying video", SOUND if name in _UNHEARD else FAULT)
    for name, body in playlists(outside / "canary.mp4", port).items():
        add("video", name, body, "playlist")
        add("image", f"{name}.png", body, "playlist")
    add("video", "many.gif", clip(3000, (8, 8), format="gif"), "many frames", SOUND)
    add("image", "many-frames.gif", clip(3000, (8, 8), format="gif"), "many frames", SOUND)
    add("image", "black.png", png_of(7_000, 7_000), "large but allowed", SOUND)
    add("image", "more.png", png_of(4, 4, inflated=2_500 << 20), "more than it shows", SOUND)
    rest = damaged(seed, 300 - len(found))
    for name, (kind, body) in rest.items():
        add(kind, name, body, "cut short" if name.startswith("cut") else "flipped bits", EITHER)
    return found


class Watched:
    """Notes whatever opens a file of some folders, from any process (Linux's inotify)."""

    _OPEN = 0x20

    def __init__(self, *folders: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(os.O_NONBLOCK)
        self._folders = {}
        for folder in folders:
            watch = libc.inotify_add_watch(self._queue, os.fsencode(folder), self._OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            self._folders[watch] = folder

    def opened(self) -> set[str]:
        """Return the names of what was opened since this was asked before."""
        names = set()
        with contextlib.suppress(BlockingIOError):
            while body := os.read(self._queue, 1 << 16):
                while body:
                    watch, _, _, length = struct.unpack("iIII", body[:16])
                    name = body[16 : 16 + length].rstrip(b"\0").decode()
                    names.add(str(self._folders[watch] / name))
                    body = body[16 + length :]
        return names

    def close(self) -> None:
        os.close(self._queue)


@contextlib.contextmanager
def peaks_of_children():
    """Yield what becomes the most memory, in MB, that each process of a pool had: pid -> MB."""
    peak_of: dict[int, float] = defaultdict(float)
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for task in Path("/proc/self/task").iterdir():
                with contextlib.suppress(OSError, IndexError):
                    for pid in (task / "children").read_text().split():
                        if b"isolated.serve" not in Path("/proc", pid, "cmdline").read_bytes():
                            continue  # not yet: it still has the memory of this process
                        status = Path("/proc", pid, "status").read_text()
                        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
                        peak_of[int(pid)] = max(peak_of[int(pid)], peak)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak_of
    finally:
        over.set()
        thread.join()
