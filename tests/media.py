"""Small images and clips, made here; and files that nobody should open."""

import io

import av
from PIL import Image, ImageDraw

CLIPS = {  # format: (codec, pixel format)
    "mp4": ("mpeg4", "yuv420p"),
    "webm": ("libvpx", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "mov": ("libx264", "yuv420p"),
    "matroska": ("libvpx-vp9", "yuv420p"),
    "mpegts": ("libx264", "yuv420p"),
    "flv": ("libx264", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(color="red", size=(32, 24)) -> bytes:
    """Return a PNG of one colour."""
    return saved(Image.new("RGB", size, color))


def jpeg(color="red", size=(32, 24), **options) -> bytes:
    """Return a JPEG of one colour."""
    return saved(Image.new("RGB", size, color), "JPEG", **options)


def corners(mode="RGB", size=(32, 24)) -> Image.Image:
    """Return an image whose upper left quarter is red, the rest blue, so that turns are seen."""
    image = Image.new("RGB", size, "blue")
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2 - 1, size[1] // 2 - 1), "red")
    return image.convert(mode)


def grey(frame: int, frames: int) -> int:
    """Return how bright frame number ``frame`` of a clip is."""
    return round(frame * 255 / max(frames - 1, 1))


def clip(
    frames=20,
    size=(64, 48),
    *,
    format="mp4",
    codec="",
    rate=10,
    rotation=0,
    picture=None,
    **options,
) -> bytes:
    """Return a clip of frames that go from black to white, or show ``picture(frame)``."""
    default, pixels = CLIPS.get(format, ("", "yuv420p"))
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec or default, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else pixels
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            level = grey(number, frames)
            image = picture(number) if picture else Image.new("RGB", size, (level,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return file.getvalue()
