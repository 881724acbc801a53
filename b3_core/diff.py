"""Two manifests compared: what went in, which rows, who meets whom, how hard it is.

    heads -> inputs and settings that differ;  row keys -> rows added, removed, kept
    communities of the rows kept -> variation of information, share of partners kept

Legend: N rows in both, X rows in one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core.artifacts import Address, Artifact
from b3_core.communities import Partition
from b3_core.manifest import Manifest
from b3_core.pairs import PairTable, rows_before
from b3_core.store import ArtifactStore

Codes = npt.NDArray[np.int64]

_FIGURES = ("window", "mutual", "too_hard", "objective")


def diff(before: Artifact, after: Artifact) -> dict[str, Any]:
    """Compare two manifests, of one store or of two.

    Communities are compared in the last phase of the curriculum, over the rows that both have; rows
    are the same if their texts and group are, wherever they stand.

    Returns
    -------
    dict
        ``settings`` and ``libraries``: key -> [before, after], where they differ; ``batches`` and
        ``left_out``: [before, after]; ``datasets``: for each name ``only_in`` (``before`` or
        ``after``), or ``inputs`` that differ, ``rows`` (``before, after, kept, added, removed``),
        ``communities`` (see :func:`compare_partitions`), ``quality``: figure -> [before, after].

    Raises
    ------
    InputError
        One of them is no manifest.
    """
    heads = [Manifest.read_head(artifact) for artifact in (before, after)]
    datasets = [{entry["name"]: entry for entry in head["datasets"]} for head in heads]
    found: dict[str, Any] = {}
    for name in dict.fromkeys([*datasets[0], *datasets[1]]):
        if name in datasets[0] and name in datasets[1]:
            sides = [
                _Side(artifact, by_name[name], head["variant_of_epoch"][-1])
                for artifact, by_name, head in zip((before, after), datasets, heads, strict=True)
            ]
            found[name] = _compare(*sides)
        else:
            found[name] = {"only_in": "before" if name in datasets[0] else "after"}
    return {
        "settings": _changed(*(_flat(head["settings"]) for head in heads)),
        "libraries": _changed(*(head["libraries"] for head in heads)),
        **{name: [head[name] for head in heads] for name in ("batches", "left_out")},
        "datasets": found,
    }


def compare_partitions(before_N: Codes, after_N: Codes) -> dict[str, float]:
    """Compare two communities of the same rows.

    Returns
    -------
    dict
        ``variation_of_information``: H(before | after) + H(after | before) in bits, 0 where the
        communities are the same (Meila 2007, 10.1016/j.jmva.2006.11.013); ``partners_kept``: of the
        pairs of rows in one community before, the share still in one; 1 where there was none.
    """
    if not before_N.size:
        return {"variation_of_information": 0.0, "partners_kept": 1.0}
    joint = np.unique(np.stack([before_N, after_N]), axis=1, return_counts=True)[1]
    first, second = (np.unique(code_N, return_counts=True)[1] for code_N in (before_N, after_N))
    pairs, kept = _pairs(first), _pairs(joint)
    return {
        "variation_of_information": 2 * _entropy(joint) - _entropy(first) - _entropy(second),
        "partners_kept": kept / pairs if pairs else 1.0,
    }


class _Side:
    """One dataset of one manifest."""

    def __init__(self, artifact: Artifact, entry: Mapping[str, Any], variant: int) -> None:
        store = artifact.store
        assert isinstance(store, ArtifactStore)
        self.entry = entry
        self.quality = entry["quality"][variant]
        pairs = store.get(Address(entry["name"], "pairs", entry["pairs"]))
        self.table = PairTable.load(pairs, "train")
        last = Address(entry["name"], "communities", entry["communities"][variant])
        self.label_N = Partition.load(store.get(last)).label_N

    @property
    def inputs(self) -> dict[str, Any]:
        """What decided the mining, apart from settings."""
        return {"data": self.entry["digest"], **_flat(self.entry["teacher"], "teacher.")}


def _compare(before: _Side, after: _Side) -> dict[str, Any]:
    before_N = rows_before(after.table, before.table)
    new_X = np.flatnonzero(before_N >= 0)
    old_X = before_N[new_X]
    return {
        "inputs": _changed(before.inputs, after.inputs),
        "rows": {
            "before": len(before.table),
            "after": len(after.table),
            "kept": len(new_X),
            "added": len(after.table) - len(new_X),
            "removed": len(before.table) - len(new_X),
        },
        "communities": compare_partitions(
            before.label_N[old_X].astype(np.int64), after.label_N[new_X].astype(np.int64)
        ),
        "quality": {
            name: [side.quality.get(name) for side in (before, after)] for name in _FIGURES
        },
    }


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [before.get(key), after.get(key)]
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a.b": 1}`` of ``{"a": {"b": 1}}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        flat |= {f"{prefix}{key}": value} if inner is None else inner
    return flat


def _entropy(count_X: Codes) -> float:
    share_X = count_X / count_X.sum()
    return float(-(share_X * np.log2(share_X)).sum())


def _pairs(count_X: Codes) -> int:
    return int((count_X * (count_X - 1)).sum())
