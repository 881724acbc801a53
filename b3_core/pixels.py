"""The bytes of an image or a video as RGB images, within limits.

    image: what it begins with -> header -> size checked -> pixels -> RGB -> at most ``side`` long
    video: packets, none decoded -> their times -> n of them, at the centres of n equal parts
           -> decoded from the key frame before each -> as an image

Sizes and lengths are checked before pixels are made; a video is as long as its packets, whatever
its header says. Decoders are handed bytes alone, and formats that name other files are not read.
"""

import bisect
import contextlib
import importlib
import io
import itertools
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from b3_core.errors import reason

if TYPE_CHECKING:
    import av
    from PIL import Image

_VIDEO_BYTES = 16  # times what an image may have
_LONGEST = 65_535  # px of a side: what JPEG can say; a row of a BMP is repeated 255 times unasked

# Not Pillow's registry: what is opened must not depend on which plugins something else imported.
_SIGNS = (
    (rb"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile"),
    (rb"\xff\xd8\xff", "JpegImagePlugin", "JpegImageFile"),
    (rb"RIFF....WEBP", "WebPImagePlugin", "WebPImageFile"),
    (rb"GIF8[79]a", "GifImagePlugin", "GifImageFile"),
    (rb"BM", "BmpImagePlugin", "BmpImageFile"),
    (rb"II[*+]\0|MM\0[*+]", "TiffImagePlugin", "TiffImageFile"),
)
_ORIENTATION = 0x0112
_warnings = threading.Lock()

# Playlists and the like name other files; these hold what they show. No protocol: no other file.
_LIBAV = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,flv,ogg",
    "protocol_whitelist": "none",
}
_CODECS = {
    *("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "vp9", "libdav1d", "av1"),
    *("theora", "mjpeg", "gif", "h263", "flv", "msmpeg4v2", "msmpeg4", "vp6f", "rawvideo"),
}
_PACKETS = 1_000_000  # of a video with its sound: two hours at 60 frames a second
_DECODED = 50  # times ``max_pixels`` that are decoded at most for a frame that is asked for


@dataclass(frozen=True)
class MediaLimits:
    """What is refused."""

    max_bytes: int = 64 << 20
    """Of an image's file; a video's may be 16 times as large."""
    max_pixels: int = 50_000_000
    """Width times height of an image, or of a video's frame."""
    max_seconds: float = 3600
    """Of a video."""

    def bytes_of(self, kind: str) -> int:
        """Return how large a file may be."""
        return self.max_bytes * (_VIDEO_BYTES if kind == "video" else 1)

    def check_bytes(self, size: int, kind: str) -> None:
        """Raise MediaError for a file that is too large."""
        if size > self.bytes_of(kind):
            raise MediaError(f"is larger than {self.bytes_of(kind):,} bytes")

    def check_size(self, width: int, height: int) -> None:
        """Raise MediaError for a picture that is too large, or has no pixel."""
        if width * height > self.max_pixels or max(width, height) > _LONGEST:
            most = f"{self.max_pixels:,} px, {_LONGEST:,} a side"
            raise MediaError(f"is {width:,} x {height:,} px; at most {most}")
        if min(width, height) < 1:
            raise MediaError("has no pixel")


class MediaError(Exception):
    """What is wrong with one medium, in words; for whoever reads many of them to count."""


def decode_image(
    content: bytes,
    *,
    side: int | None = None,
    limits: MediaLimits = MediaLimits(),  # noqa: B008
) -> "Image.Image":
    """Decode an image: PNG, JPEG, WEBP, GIF, BMP or TIFF; of several, the first.

    Parameters
    ----------
    content
        The file's bytes.
    side
        Pixels of the longest side at most; smaller images stay as they are.
    limits
        What is refused.

    Returns
    -------
    PIL.Image.Image
        RGB, upright as its EXIF orientation says, what is transparent on white. Colour profiles are
        ignored, 16-bit grey keeps its upper 8 bits. It depends on nothing but content and side.

    Raises
    ------
    MediaError
        It is none of these, damaged, or beyond the limits.
    """
    limits.check_bytes(len(content), "image")
    with _as_media_error():
        with _quiet():
            image = _opened_image(content)
        limits.check_size(*image.size)
        if side and max(image.size) > side and image.format == "JPEG":
            # Its decoder can halve sides as it goes: down to twice what is asked for, and no more.
            image.draft(None, tuple(2 * length for length in _fitting(image.size, side)))
        with _quiet() if image.format == "TIFF" else contextlib.nullcontext():
            image.load()
        with _quiet():
            orientation = image.getexif().get(_ORIENTATION)
        return _upright(_fitted(_on_white(image), side), orientation)


def _opened_image(content: bytes) -> Any:
    """Read an image's header, by what the bytes begin with; no pixel is decoded."""
    for sign, module, name in _SIGNS:
        if re.match(sign, content, re.DOTALL):
            return getattr(importlib.import_module(f"PIL.{module}"), name)(io.BytesIO(content))
    raise MediaError("is no PNG, JPEG, WEBP, GIF, BMP or TIFF")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let Pillow not warn: of sizes, which are checked here, and of odd metadata."""
    with _warnings, warnings.catch_warnings():  # the filters belong to all threads
        warnings.simplefilter("ignore")
        yield


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image  # noqa: PLC0415 - an extra

    if image.mode.startswith("I;16"):
        upper = slice(0, None, 2) if image.mode == "I;16B" else slice(1, None, 2)
        return Image.frombytes("L", image.size, image.tobytes()[upper]).convert("RGB")
    if image.mode in ("I", "F"):
        raise MediaError("has grey values of 32 bits, of which nobody says what white is")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _fitting(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height of which the longest is ``side``."""
    longest = max(size)
    width, height = (max(round(length * side / longest), 1) for length in size)
    return width, height


def _fitted(image: "Image.Image", side: int | None) -> "Image.Image":
    from PIL import Image  # noqa: PLC0415

    if side is None or max(image.size) <= side:
        return image
    return image.resize(_fitting(image.size, side), Image.Resampling.BICUBIC)


def _upright(image: "Image.Image", orientation: object) -> "Image.Image":
    from PIL.Image import Transpose  # noqa: PLC0415

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def decode_frames(
    content: bytes,
    *,
    frames: int = 8,
    side: int | None = None,
    limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
) -> "list[Image.Image]":
    """Decode frames of a video, uniform over its length.

    Parameters
    ----------
    content
        The file's bytes: mp4, mov, webm, Matroska, AVI, GIF, MPEG-TS, FLV or Ogg.
    frames
        How many, at least 1.
    side
        Pixels of the longest side at most; smaller frames stay as they are.
    limits
        What is refused.

    Returns
    -------
    list of PIL.Image.Image
        What is shown at the centre of each of so many equal parts of the first video stream,
        upright, RGB. Of a video with fewer frames some come again, the same object.

    Raises
    ------
    MediaError
        It is none of these, damaged, cut short, or beyond the limits.
    """
    limits.check_bytes(len(content), "video")
    with _as_media_error():
        track = _track(content, limits)
        time_F = track.shown(frames)
        image_of = _decoded(content, track, sorted(set(time_F)), side=side, limits=limits)
        return [image_of[time] for time in time_F]


@dataclass(frozen=True)
class _Track:
    """The packets of a video stream, in the order of decoding; times in its own unit."""

    time_P: list[int | None]
    key_P: list[bool]
    end: int

    def shown(self, frames: int) -> list[int]:
        """Return the times of the frames that are shown at the centres of equal parts."""
        times = sorted({time for time in self.time_P if time is not None})
        twice = [2 * part + 1 for part in range(frames)]
        length = self.end - times[0]
        centres = [times[0] + length * odd // (2 * frames) for odd in twice]
        return [times[bisect.bisect_right(times, centre) - 1] for centre in centres]

    def starts(self, time_U: list[int]) -> list[int]:
        """Return the packets to decode from: the last key frame that is not later, for each."""
        keys = sorted(
            (time, place)
            for place, (time, key) in enumerate(zip(self.time_P, self.key_P, strict=True))
            if key and time is not None
        )
        latest = list(itertools.accumulate((place for _, place in keys), max, initial=0))
        return [latest[bisect.bisect_right(keys, (time, len(self.time_P)))] for time in time_U]


@contextlib.contextmanager
def _opened_video(content: bytes, limits: MediaLimits) -> "Iterator[tuple[Any, Any]]":
    """Open a container and its first video stream, to be decoded by one thread."""
    import av  # noqa: PLC0415 - an extra

    options = {
        **_LIBAV,
        "codec_whitelist": ",".join(sorted(_CODECS)),
        "max_pixels": str(limits.max_pixels),
    }
    with av.open(io.BytesIO(content), options=options, metadata_errors="ignore") as container:
        if not container.streams.video:
            raise MediaError("has no video stream")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None or codec.name not in _CODECS:
            raise MediaError(f"is coded as {'nothing known' if codec is None else codec.name}")
        if not codec.width:  # libav has dropped what is beyond its limit
            raise MediaError(f"has no size, or more than {limits.max_pixels:,} px a frame")
        limits.check_size(codec.width, codec.height)
        codec.options = {"max_pixels": options["max_pixels"]}
        codec.thread_count = 1
        yield container, stream


def _track(content: bytes, limits: MediaLimits) -> _Track:
    """Go through the packets of all streams, and decode none."""
    time_P: list[int | None] = []
    key_P: list[bool] = []
    end, last, size, count = 0, Fraction(0), 0, 0
    with _opened_video(content, limits) as (container, stream):
        for packet in container.demux():
            count, size = count + 1, size + packet.size
            if count > _PACKETS or size > 4 * len(
                content
            ):  # several may say they are the same bytes
                raise MediaError("has more packets than its length and size allow for")
            if packet.is_corrupt:
                raise MediaError("is damaged or cut short")
            time = packet.dts if packet.pts is None else packet.pts
            until = None if time is None else time + max(packet.duration or 0, 1)
            if until is not None and packet.time_base:
                last = max(last, until * packet.time_base)
            if packet.size and packet.stream_index == stream.index:
                time_P.append(time)
                key_P.append(packet.is_keyframe)
                end = end if until is None else max(end, until)
        declared = Fraction(container.duration or 0, 1_000_000)
        unit = stream.time_base
    times = [time for time in time_P if time is not None]
    if not times:
        raise MediaError("has no frame")
    last = max(last, last - min(times) * unit)
    # Headers are rounded, and written by many hands.
    if declared > last * Fraction(11, 10) + Fraction(1, 2):
        raise MediaError(f"ends after {float(last):.1f} s of {float(declared):.1f} s")
    length = (end - min(times)) * unit
    if length > limits.max_seconds:
        raise MediaError(f"is {float(length):,.0f} s long; at most {limits.max_seconds:,.0f}")
    return _Track(time_P, key_P, end)


def _decoded(
    content: bytes, track: _Track, time_U: list[int], *, side: int | None, limits: MediaLimits
) -> "dict[int, Image.Image]":
    """Decode the frames of some times, which ascend: time -> image.

    Not by seeking, which each container does in a way of its own: packets are gone through once
    more, and only those from a key frame on up to what is wanted are decoded.
    """
    found: dict[int, Image.Image] = {}
    wanted = list(zip(time_U, track.starts(time_U), strict=True))[::-1]
    budget = _DECODED * limits.max_pixels * len(wanted)
    with _opened_video(content, limits) as (container, stream):
        codec = stream.codec_context
        place, decoding = 0, False
        latest: Any = None
        for packet in container.demux(stream):
            if not wanted:
                break
            if not decoding and place >= wanted[-1][1]:
                codec.flush_buffers()
                decoding, latest = True, None
            for frame in codec.decode(packet) if decoding else ():
                limits.check_size(frame.width, frame.height)
                budget -= frame.width * frame.height
                if budget < 0:
                    raise MediaError("has key frames so far apart that it takes too long to decode")
                latest = frame
                # H.264 in AVI has no times but those of decoding.
                at = frame.dts if frame.pts is None else frame.pts
                while wanted and at is not None and at >= wanted[-1][0]:
                    found[wanted.pop()[0]] = _picture(frame, side)
            decoding = decoding and bool(wanted) and place >= wanted[-1][1]
            place += bool(packet.size)
        if wanted and latest is None:
            raise MediaError("has frames that cannot be decoded")
        for time, _ in wanted:  # the last ones: their times were never reached
            found[time] = _picture(latest, side)
    return found


def _picture(frame: "av.VideoFrame", side: int | None) -> "Image.Image":
    from PIL import Image  # noqa: PLC0415

    if frame.is_corrupt:
        raise MediaError("has a frame that is damaged")
    see_through = any(component.is_alpha for component in frame.format.components)
    mode, name = ("RGBA", "rgba") if see_through else ("RGB", "rgb24")
    plane = frame.reformat(format=name, threads=1).planes[0]
    upward = -1 if plane.line_size < 0 else 1
    image = Image.frombytes(
        mode, (frame.width, frame.height), bytes(plane), "raw", mode, abs(plane.line_size), upward
    )
    orientation = {90: 8, 180: 3, 270: 6}.get(frame.rotation % 360)  # anti-clockwise
    return _upright(_fitted(_on_white(image), side), orientation)


@contextlib.contextmanager
def _as_media_error() -> Iterator[None]:
    """Raise whatever a decoder says as a MediaError, one line long."""
    try:
        yield
    except (MediaError, MemoryError, ImportError):
        raise
    except Exception as error:
        said = getattr(error, "strerror", None) or reason(error)
        # Objects name their addresses, which are others each time.
        said = re.sub(r" at 0x[0-9a-f]+", "", said)
        raise MediaError(f"cannot be decoded: {said[:200]}") from error
