"""Handwritten digits: (picture, what it shows), ten labels only.

scikit-learn carries 1,797 digits of 8 x 8 pixels in 16 greys (Optical Recognition of Handwritten
Digits, UCI, CC BY 4.0). Every batch of 64 holds each label several times: what a classification
needs, that rows of one label are no negatives of one another, shows here at once.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from b3_core.corpus.made import PICTURES, Made, MadeKind, as_images, mixed, png
from b3_core.progress import Progress

#: How many times a pixel is repeated either way: 8 x 8 become 48 x 48, as the icons are.
_SCALE = 6

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make_digits(progress: Progress) -> Made:
    """Draw every digit; each is a family of its own, and so are digits of the same pixels."""
    from sklearn import datasets  # type: ignore[import-untyped]  # noqa: PLC0415 - slow

    digits = datasets.load_digits()
    grey_NHW = _grey(digits.images)
    pixels = [image_HW.tobytes() for image_HW in grey_NHW]
    order = sorted(range(len(pixels)), key=lambda i: mixed(pixels[i].hex()))
    side = grey_NHW.shape[1]
    columns: list[Any] = [
        as_images([png(pixels[i], side) for i in order], [f"{i}.png" for i in order]),
        [f"the digit {_NAMES[digits.target[i]]}" for i in order],
        [f"{mixed(pixels[i].hex()):016x}" for i in order],
        [f"digits:{i}" for i in order],
    ]
    progress(len(order), len(order))
    return Made(pa.table(columns, schema=PICTURES))


def _grey(ink_NHW: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Turn ink of 0 to 16 into greys, 255 for none, and enlarge them."""
    grey_NHW = (255 - np.round(ink_NHW * (255 / 16))).astype(np.uint8)
    return grey_NHW.repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)


KIND = MadeKind(
    dataset="digits",
    columns={"query_image": "image", "positive": "text"},
    task="classification",
    packages=("scikit-learn", "pillow"),
    make=make_digits,
)
