"""Icons: (picture, name) of every Material Design icon.

``material-design-icons-pack`` carries the 7,447 drawings of ``@mdi/svg`` as SVG, each with its
name, and nothing else that describes it. Its licence is the Pictogrammers Free License, under which
the icons are free to use: Apache-2.0, or their own where an icon has one. Brands, which the set
marks as deprecated, are left out.

    SVG -> 48 x 48 greyscale, dark on white -> copies joined -> families -> PNG

The same drawing has several names now and then (``heart`` and ``cards-heart``): it is one row,
whose text has them all, since nobody can tell the copies apart.

Icons are held out by family: ``account-alert``, ``account-alert-outline`` and every other variant
of that style, or the outline would give its filled twin away. Families are not wider, such as all
that begin with ``account``: a student that starts from nothing can put parts together that it has
seen, but it cannot know a thing that it has never seen. Held out is the combination.
"""

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from b3_core.corpus.made import PICTURES, Made, MadeKind, as_images, mixed, png
from b3_core.progress import Progress

#: Width and height in pixels: twice the grid of 24 units that the icons are drawn on, so that their
#: lines, of two units, keep their edges.
SIDE = 48

#: Words of a name that say how something is drawn, not what it shows.
_STYLES = {"outline", "variant"}

_PROGRESS = 256


def family_of(name: str) -> str:
    """Return an icon's name without the words that say how it is drawn.

    >>> family_of("account-alert-outline")
    'account-alert'
    """
    words = [word for word in name.split("-") if word not in _STYLES]
    return "-".join(words) or name


def make_icons(progress: Progress) -> Made:
    """Draw every icon that is no brand; those whose SVG refers to something else are skipped."""
    import material_design_icons_pack as pack  # noqa: PLC0415 - an extra

    icons = [icon for icon in vars(pack).values() if isinstance(icon, pack.Icon)]
    kept = [icon for icon in icons if not icon.deprecated]
    whole = [icon for icon in kept if "href" not in icon.svg and "url(" not in icon.svg]
    names_of: dict[bytes, list[str]] = {}
    for done, icon in enumerate(sorted(whole, key=lambda icon: icon.slug), start=1):
        names_of.setdefault(draw(icon.svg), []).append(icon.slug)
        if done % _PROGRESS == 0 or done == len(whole):
            progress(done, len(whole))
    return Made(_table(names_of), skipped=len(kept) - len(whole))


def draw(svg: str) -> bytes:
    """Return an SVG's grey values, row by row from the top: SIDE x SIDE bytes, 255 for white."""
    import resvg_py  # noqa: PLC0415 - an extra
    from PIL import Image  # noqa: PLC0415 - likewise

    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIDE, height=SIDE, background="white", skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return bytes(image.convert("L").tobytes())


def families(groups: Iterable[list[str]]) -> dict[str, str]:
    """Name the family of each icon: the least family of those that share a drawing with it.

    Parameters
    ----------
    groups
        For each drawing its names.
    """
    root: dict[str, str] = {}

    def find(family: str) -> str:
        while root.setdefault(family, family) != family:
            family = root[family]
        return family

    names = []
    for group in groups:
        names.extend(group)
        first, *others = (find(family_of(name)) for name in group)
        for other in others:
            low, high = sorted((find(first), find(other)))
            root[high] = low
    return {name: find(family_of(name)) for name in names}


def _table(names_of: dict[bytes, list[str]]) -> pa.Table:
    family = families(names_of.values())
    ordered = sorted(names_of.items(), key=lambda item: mixed(item[1][0]))
    firsts = [names[0] for _, names in ordered]
    columns: list[Any] = [
        as_images([png(pixels, SIDE) for pixels, _ in ordered], [f"{name}.png" for name in firsts]),
        [", ".join(name.replace("-", " ") for name in names) for _, names in ordered],
        [family[name] for name in firsts],
        [" ".join(f"mdi:{name}" for name in names) for _, names in ordered],
    ]
    return pa.table(columns, schema=PICTURES)


KIND = MadeKind(
    dataset="icons",
    columns={"query_image": "image", "positive": "text"},
    task="retrieval",
    packages=("material-design-icons-pack", "resvg-py", "pillow"),
    make=make_icons,
)
