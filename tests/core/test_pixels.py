"""Images and frames as RGB: every kind of file, a slow twin for every short cut, limits kept."""

import io
import struct
import threading
import warnings

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from b3_core.pixels import MediaError, MediaLimits, decode_frames, decode_image
from tests.hostile import chunk, huge_headers, png_of, zeros
from tests.media import CLIPS, clip, corners, grey, jpeg, png, saved

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(size=(97, 61), mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    image = Image.frombytes(mode, size, pixels.tobytes())
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def near(found, expected, most=4):
    return all(abs(a - b) <= most for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_decoded(format):
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode_image(saved(corners("P" if format == "GIF" else "RGB"), format, **options))
    assert (type(image), image.mode, image.size) == (Image.Image, "RGB", (32, 24))
    assert near(image.getpixel((3, 3)), RED) and near(image.getpixel((28, 20)), BLUE)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_is_what_a_plain_conversion_says(mode, format):
    if (mode, format) == ("CMYK", "PNG"):
        pytest.skip("no such PNG")
    image = noise(mode="L").convert("1") if mode == "1" else noise(mode=mode)
    body = saved(image, format)
    plain = Image.open(io.BytesIO(body)).convert("RGBA")
    white = Image.new("RGBA", plain.size, "white")
    expected = Image.alpha_composite(white, plain).convert("RGB")
    found = decode_image(body)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
    assert len(set(found.get_flattened_data() if mode != "1" else range(3))) > 2


def test_what_is_transparent_is_white():
    layer = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    layer.putpixel((2, 0), (0, 0, 0, 128))
    image = decode_image(saved(layer))
    assert [image.getpixel((x, 0)) for x in range(3)] == [RED, WHITE, (127, 127, 127)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    for format, transparency in (("PNG", 1), ("PNG", b"\xff\0"), ("GIF", 1)):
        image = decode_image(saved(palette, format, transparency=transparency))
        assert [image.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]
    image = decode_image(saved(Image.new("RGB", (2, 2), "red"), transparency=RED))
    assert image.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_upper_eight(format):
    levels = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    image = decode_image(saved(Image.fromarray(levels), format))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0x80, 0xFF]
    big = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", 8)
    for tag, value in ((256, 2), (257, 1), (258, 16), (259, 1), (262, 1), (273, 200), (277, 1)):
        big += struct.pack(">HHIHH", tag, 3, 1, value, 0)
    big += struct.pack(">HHIHH", 279, 3, 1, 4, 0) + bytes(4)
    big = big.ljust(200, b"\0") + struct.pack(">HH", 0x1234, 0xFF00)
    assert np.asarray(decode_image(big))[0, :, 0].tolist() == [0x12, 0xFF]


def test_grey_values_without_a_white_are_refused():
    for mode in ("I", "F"):
        with pytest.raises(MediaError, match="of which nobody says what white is"):
            decode_image(saved(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_its_exif_says(orientation, format):
    image = corners(size=(48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = saved(image, format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
    assert decode_image(body).tobytes() == expected.tobytes()
    assert expected.size == ((32, 48) if orientation in range(5, 9) else (48, 32))


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (640, 3), (3, 640), (64, 64), (30, 20)])
def test_an_image_is_made_smaller_and_never_larger(size):
    image = noise(size)
    found = decode_image(saved(image), side=64)
    scale = min(64 / max(size), 1)
    assert found.size == tuple(max(round(length * scale), 1) for length in size)
    assert found.tobytes() == image.resize(found.size, Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000), (513, 512), (130, 90), (2000, 40)])
def test_a_jpeg_that_is_halved_as_it_is_read_looks_like_the_whole(size):
    tiles = noise((16, 16)).resize(size, Image.Resampling.BICUBIC)
    body = saved(tiles, "JPEG", quality=90)
    found = decode_image(body, side=64)
    expected = decode_image(body).resize(found.size, Image.Resampling.BICUBIC)
    assert max(found.size) == 64
    difference = np.abs(np.asarray(found, float) - np.asarray(expected, float))
    assert difference.mean() < 5 and np.asarray(expected, float).std() > 15


def test_a_jpeg_of_inks_and_the_first_of_several_pictures():
    image = decode_image(saved(corners("CMYK"), "JPEG"))
    assert near(image.getpixel((3, 3)), RED, 8)
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for format in ("GIF", "WEBP", "TIFF", "PNG"):
        body = saved(frames[0], format, save_all=True, append_images=frames[1:])
        assert near(decode_image(body).getpixel((3, 3)), RED)


def test_colour_profiles_and_names_change_nothing():
    assert decode_image(saved(corners(), icc_profile=bytes(200))).tobytes() == corners().tobytes()


def test_no_warning_and_no_thread_sees_others_filters(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow's own, for the whole process
    exif = Image.Exif()
    exif[0x0112] = 6
    # An EXIF block that says it has more entries than bytes.
    odd = saved(corners(), "JPEG", exif=exif.tobytes()[:-4])
    beyond = bytearray(saved(corners("P"), "GIF"))  # a frame larger than its screen
    beyond[6:10] = bytes((8, 0, 8, 0))

    def decode():
        for _ in range(30):
            decode_image(odd)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        assert decode_image(bytes(beyond)).size == decode_image(png()).size == (32, 24)
        threads = [threading.Thread(target=decode) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
    assert not caught


@pytest.mark.parametrize("name", huge_headers())
def test_a_size_is_refused_before_there_are_pixels(name, monkeypatch):
    body = huge_headers()[name]
    monkeypatch.setattr(Image.core, "new", lambda *a: pytest.fail("pixels"))
    monkeypatch.setattr(Image.core, "fill", lambda *a: pytest.fail("pixels"))
    with pytest.raises(MediaError, match=r"px; at most|exceeds limit|could not create|checksum"):
        decode_image(body)


def test_limits_are_what_the_caller_says():
    with pytest.raises(MediaError, match="is 33 x 24 px; at most 768 px, 65,535 a side"):
        decode_image(png(size=(33, 24)), limits=MediaLimits(max_pixels=32 * 24))
    assert decode_image(png(), limits=MediaLimits(max_pixels=32 * 24)).size == (32, 24)
    with pytest.raises(MediaError, match="is larger than 10 bytes"):
        decode_image(png(), limits=MediaLimits(max_bytes=10))
    with pytest.raises(MediaError, match="is larger than 160 bytes"):
        decode_frames(clip(), limits=MediaLimits(max_bytes=10))
    with pytest.raises(MediaError, match="has no size, or more than 1,000 px a frame"):
        decode_frames(clip(), limits=MediaLimits(max_pixels=1000))
    with pytest.raises(MediaError, match="is 2 s long; at most 1"):
        decode_frames(clip(), limits=MediaLimits(max_seconds=1.4))


def test_a_kind_that_is_not_read_is_not_tried():
    for body in (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS", b"P6 1 1 255 abc", b"", png()[1:]):
        with pytest.raises(MediaError, match="is no PNG, JPEG, WEBP, GIF, BMP or TIFF"):
            decode_image(body)
    for format in ("PPM", "TGA", "PCX", "ICO", "EPS"):
        with pytest.raises(MediaError):
            decode_image(saved(corners(), format))


def test_text_that_inflates_is_refused():
    text = chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(80 << 20))
    with pytest.raises(MediaError, match="too large"):
        decode_image(png_of(4, 4, extra=text))


def slowly(content, frames):
    """Decode every frame; take those shown at the centres of equal parts."""
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        shown = [(frame.pts, frame.to_image()) for frame in container.decode(stream)]
    with av.open(io.BytesIO(content)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    end = max(packet.pts + packet.duration for packet in packets)
    first = min(packet.pts for packet in packets)
    centres = [first + (end - first) * (part + 0.5) / frames for part in range(frames)]
    return [[image for pts, image in shown if pts <= at][-1] for at in centres]


def moving(number):
    image = noise((64, 48), seed=1)
    image.paste((255, 255, 255), (number % 56, 8, number % 56 + 8, 40))
    return image


CUTS = [
    ("mp4", {}),
    ("mp4", {"codec": "libx264", "g": "12", "bf": "3"}),
    ("mp4", {"codec": "libx264", "g": "500"}),
    ("mov", {"codec": "libx264", "g": "5", "x264-params": "open-gop=1"}),
    ("webm", {"g": "9"}),
    ("matroska", {"g": "7"}),
    ("avi", {"g": "6"}),
    ("avi", {"codec": "libx264", "g": "6", "bf": "0"}),  # its frames have no times to be shown at
    ("mpegts", {"g": "10", "bf": "2"}),
    ("flv", {"g": "8", "bf": "2"}),
    ("gif", {}),
]


@pytest.mark.parametrize(("format", "options"), CUTS, ids=str)
def test_frames_are_those_of_decoding_everything(format, options):
    content = clip(45, format=format, picture=moving, **options)
    for frames in (1, 3, 8):
        found = decode_frames(content, frames=frames)
        assert [image.tobytes() for image in found] == [
            image.tobytes() for image in slowly(content, frames)
        ]
    assert len({image.tobytes() for image in found}) == 8


def test_only_what_is_needed_is_decoded(monkeypatch):
    whole = clip(200, codec="libx264", g="10", picture=moving)  # wanted: frames 33, 100 and 166
    limits = MediaLimits(max_pixels=64 * 48)
    monkeypatch.setattr("b3_core.pixels._DECODED", 20)  # frames for each of the three
    assert len(decode_frames(whole, frames=3, limits=limits)) == 3
    monkeypatch.setattr("b3_core.pixels._DECODED", 2)
    with pytest.raises(MediaError, match="takes too long to decode"):
        decode_frames(whole, frames=3, limits=limits)


@pytest.mark.parametrize("format", [each for each in CLIPS if each != "gif"])
@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_there_are_as_many_frames_as_asked_for(format, count):
    found = decode_frames(clip(count, format=format), frames=6)
    shown = [int((part + 0.5) * count / 6) for part in range(6)]
    assert len(found) == 6
    for image, number in zip(found, shown, strict=True):
        assert near(image.getpixel((30, 20)), (grey(number, count),) * 3, 5)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_video_is_turned_as_it_says(rotation):
    content = clip(3, rotation=rotation, picture=lambda _: corners(size=(64, 48)))
    (image,) = decode_frames(content, frames=1)
    expected = corners(size=(64, 48)).rotate(rotation, expand=True)
    assert image.size == expected.size
    for x in (10, image.width - 10):
        for y in (10, image.height - 10):
            assert near(image.getpixel((x, y)), expected.getpixel((x, y)), 8)


def test_frames_are_made_smaller():
    assert {image.size for image in decode_frames(clip(5), side=16)} == {(16, 12)}
    assert {image.size for image in decode_frames(clip(5), side=100)} == {(64, 48)}


def test_a_clip_that_ends_early_is_refused():
    for format in ("webm", "avi", "matroska"):
        whole = clip(60, format=format, picture=moving)
        with pytest.raises(MediaError, match="ends after|cut short|cannot be decoded"):
            decode_frames(whole[: len(whole) // 2])


def test_a_container_that_is_not_listed_is_not_read():
    """Whether it names other files or not: no list of those that do is complete."""
    assert len(decode_frames(clip(3, format="matroska", codec="mpeg4"))) == 8
    for format in ("nut", "mpjpeg", "asf"):
        with pytest.raises(MediaError, match="Invalid argument|Invalid data"):
            decode_frames(clip(3, format=format, codec="mjpeg" if format == "mpjpeg" else "mpeg4"))


def test_sound_alone_is_no_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="has no video stream"):
        decode_frames(file.getvalue())


def test_what_is_wrong_is_one_line_and_always_the_same():
    for body in (png()[:40], jpeg()[:100], b"BM" + bytes(60), b"II*\0" + bytes(40), clip()[:900]):
        said = set()
        for _ in range(2):
            with pytest.raises(MediaError) as caught:
                decode_image(body) if body[4:8] != b"ftyp" else decode_frames(body)
            said.add(str(caught.value))
        assert len(said) == 1 and "\n" not in said.pop()
