"""Batches to read: rows with their texts and pictures, each with its nearest partners and why.

    a few batches -> rows of the first communities -> the partners that the teacher scores highest

How much is shown is bounded: rows a batch, partners a row, characters a text, bytes of pictures.

Legend: S batches, B rows of a batch.
"""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.batches import BatchPlan
from b3_core.errors import B3Error, reason
from b3_core.inputs import Seeing, Shelf
from b3_core.report.meetings import LIKELY, Looked, Rows, Sight
from b3_core.report.repeats import Texts

ROWS = 32  # shown of a batch
PARTNERS = 5  # of a row
CHARACTERS = 320  # of a row's text
SNIPPET = 140  # of a partner's
SIDE = 96  # pixels of a thumbnail, twice as many across
PICTURES = 1_000_000  # bytes of all thumbnails together, as they stand in the page


@dataclass
class Album:
    """Thumbnails of rows, each drawn once, until their bytes are used up."""

    shelf: Shelf | None
    left: int = PICTURES
    faults: list[str] = field(default_factory=list)
    _drawn: dict[str, str] = field(default_factory=dict)

    def thumbnail(self, medium: Mapping[str, Any] | None) -> str | None:
        """Return a ``data:`` URI of a picture or of a video's first frame; None if there is none.

        Beside a side that has one, an empty string says that it could not be shown.
        """
        if not medium or not medium["kind"]:
            return None
        key = str(medium["digest"])
        if key not in self._drawn:
            self._drawn[key] = self._draw(medium)
            self.left -= len(self._drawn[key])
        return self._drawn[key]

    def _draw(self, medium: Mapping[str, Any]) -> str:
        if self.shelf is None or self.left <= 0:
            return ""
        try:
            shown = self.shelf.show(medium, Seeing(4 * SIDE, 1))
            return _data_uri(shown[0] if isinstance(shown, list) else shown)
        except (B3Error, ImportError, ValueError) as error:
            if not self.faults:
                self.faults.append(f"pictures cannot be shown: {reason(error)}")
            return ""


def _data_uri(picture: Any) -> str:
    """Encode a thumbnail as PNG or JPEG, whichever is smaller."""
    from PIL import Image, ImageOps  # noqa: PLC0415 - an extra

    small = ImageOps.contain(picture.convert("RGB"), (2 * SIDE, SIDE), Image.Resampling.LANCZOS)
    bodies = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 72})):
        body = io.BytesIO()
        small.save(body, kind, **options)
        bodies[kind] = body.getvalue()
    kind = min(bodies, key=lambda name: len(bodies[name]))
    return f"data:image/{kind};base64,{base64.b64encode(bodies[kind]).decode()}"


def choose(plan: BatchPlan, dataset: int, *, many: int, rng: np.random.Generator) -> list[int]:
    """Choose batches of one dataset: mined ones, and one drawn at random if the plan has both."""
    mine_S = np.flatnonzero(plan.dataset_S == dataset)
    mined_S = (plan.community_SB[mine_S] >= 0).any(axis=1)
    found: list[int] = []
    for candidates, wanted in (
        (mine_S[~mined_S], min(1, many - 1) if mined_S.any() else many),
        (mine_S[mined_S], many),
    ):
        take = min(wanted, many - len(found), len(candidates))
        found += rng.choice(candidates, take, replace=False).tolist() if take > 0 else []
    return sorted(found)


def read_batch(
    batch: int, plan: BatchPlan, looked: Looked, *, texts: Texts, album: Album
) -> dict[str, Any]:
    """Return one batch to read.

    Returns
    -------
    dict
        ``batch``, ``epoch``, ``size``; ``rows``: for each shown ``slot, row_id, community, own``
        (the teacher's score of its own positive), ``query``, ``positive``, pictures beside them,
        ``likely`` false negatives in the whole batch, and ``partners``: ``slot, score, positive``,
        and ``why`` in words, with its parts ``relation``, ``rank``, ``together`` and ``place``.
    """
    row_B, community_B = plan.row_SB[batch], plan.community_SB[batch]
    score_BB, other_BB = looked.scores(row_B), looked.others(row_B)
    rank_BB = None if looked.sight is None else looked.sight.ranks(row_B)
    order_BB = _nearest_first(score_BB, rank_BB, len(row_B))
    rows = []
    for slot in range(min(len(row_B), ROWS)):
        shown = texts.shown[int(row_B[slot])]
        near = [int(other) for other in order_BB[slot] if other != slot][:PARTNERS]
        own = None if score_BB is None else float(score_BB[slot, slot])
        rows.append(
            {
                "slot": slot,
                "row_id": shown["row_id"],
                "community": int(community_B[slot]),
                "own": own,
                "query": cut(shown["query"], CHARACTERS),
                "positive": cut(shown["positive"], CHARACTERS),
                "query_picture": album.thumbnail(shown.get("query_medium")),
                "positive_picture": album.thumbnail(shown.get("positive_medium")),
                "likely": _likely(score_BB, other_BB, slot),
                "partners": [
                    {
                        "slot": other,
                        "score": None if score_BB is None else float(score_BB[slot, other]),
                        "positive": cut(texts.shown[int(row_B[other])]["positive"], SNIPPET),
                        **why(
                            community_B[slot], community_B[other],
                            rank=None if rank_BB is None else int(rank_BB[slot, other]),
                            same_group=not other_BB[slot, other],
                            sight=looked.sight,
                        ),
                    }
                    for other in near
                ],
            }
        )  # fmt: skip
    return {
        "batch": batch,
        "epoch": int(plan.epoch_S[batch]),
        "size": len(row_B),
        "random": bool((community_B < 0).all()),
        "rows": rows,
    }


def why(
    own: int, other: int, *, rank: int | None, same_group: bool, sight: Sight | None
) -> dict[str, Any]:
    """Say why two rows of a batch meet, in parts and in words.

    Parameters
    ----------
    own, other
        Their communities; -1 where drawn at random.
    rank
        Of the other's positive for the own query; -1 where it is not ranked, None if unknown.
    """
    together = bool(own == other and own >= 0)
    place = "same community" if together else "drawn with another community"
    if own < 0 or other < 0:
        place = "drawn at random"
    labelled = sight is not None and (sight.first, sight.stop) == (0, 1)
    relation, words = "beyond", "its label is not near" if labelled else "beyond the window"
    if same_group:
        relation, words = "group", "same group, masked in the loss"
    elif rank is None or sight is None:
        relation, words = "unknown", "rank unknown"
    elif 0 <= rank < sight.first:
        relation, words = "too_hard", f"too hard, rank {rank} of the first {sight.first}"
    elif sight.first <= rank < sight.stop:
        span = f"window, rank {rank} of {sight.first} to {sight.stop - 1}"
        relation, words = "window", "its label is near" if labelled else span
    return {
        "relation": relation,
        "rank": rank if rank is not None and rank >= 0 and not labelled else None,
        "together": together,
        "place": place,
        "why": f"{words}; {place}",
    }


def cut(text: str, characters: int) -> str:
    """Shorten a text, at a space if there is one near; blank lines go."""
    text = re.sub(r"\n\s*\n", "\n", text)
    if len(text) <= characters:
        return text
    head = text[:characters]
    at = head.rfind(" ", characters - 20)
    return (head[:at] if at > 0 else head).rstrip() + " …"


def _nearest_first(
    score_BB: npt.NDArray[np.float64] | None, rank_BB: Rows | None, size: int
) -> npt.NDArray[np.intp]:
    """Order each row's partners by score; by rank where there are no vectors, else not at all."""
    if score_BB is not None:
        return np.argsort(-score_BB, axis=1, kind="stable")
    if rank_BB is not None:
        unranked = np.iinfo(np.int32).max
        return np.argsort(np.where(rank_BB < 0, unranked, rank_BB), axis=1, kind="stable")
    return np.zeros((size, 0), np.intp)


def _likely(
    score_BB: npt.NDArray[np.float64] | None, other_BB: npt.NDArray[np.bool_], slot: int
) -> int | None:
    if score_BB is None or score_BB[slot, slot] <= 0:
        return None
    return int((other_BB[slot] & (score_BB[slot] >= LIKELY * score_BB[slot, slot])).sum())
