"""What a manifest stands on, and what each stage took: from the artifacts' own records.

head's lineage -> records -> a line a stage: fingerprint, seconds, memory, bytes, when
"""

from collections.abc import Sequence
from typing import Any

from b3_core.artifacts import Artifact
from b3_core.embed import content_of
from b3_core.pairs import read_keys
from b3_core.report.stored import Upstream
from b3_core.stage import cost_of

_ORDER = ("pairs", "embeddings", "ranks", "labels", "graph", "communities")


def stages(manifest: Artifact, upstreams: Sequence[Upstream]) -> list[dict[str, Any]]:
    """Return a line for each stage of each dataset, in the order of their making.

    Returns
    -------
    list
        ``dataset, stage, fingerprint, there``, and of those that are there ``seconds, peak_mb,
        bytes, finished, parts, settings, lineage``. The shards of embeddings are one line, if they
        are still there: ``parts`` is how many they are, ``seconds`` their sum.
    """
    lines = []
    for upstream in upstreams:
        for stage in _ORDER:
            for address in upstream.addresses(stage):
                artifact = upstream.at(address)
                if stage == "embeddings" and artifact is not None:
                    lines += _shards(upstream, artifact)
                lines.append(
                    {"dataset": upstream.name, "stage": stage, "fingerprint": address.fingerprint}
                    | _record(artifact)
                )
    whole = {"dataset": "all", "stage": "manifest", "fingerprint": manifest.fingerprint}
    return [*lines, whole | _record(manifest)]


def totals(lines: Sequence[dict[str, Any]], hourly: float | None = None) -> dict[str, Any]:
    """Return the sum of seconds and bytes, and the most memory that a stage took.

    ``hourly`` is the price of an hour; without it, ``money`` is None.
    """
    there = [line for line in lines if line["there"]]
    seconds = sum(line["seconds"] or 0.0 for line in there)
    return {
        "seconds": round(seconds, 3),
        "money": None if hourly is None else seconds / 3600 * hourly,
        "bytes": sum(line["bytes"] for line in there),
        "peak_mb": max((line["peak_mb"] or 0.0 for line in there), default=0.0),
        "gone": len(lines) - len(there),
    }


def _record(artifact: Artifact | None) -> dict[str, Any]:
    if artifact is None:
        return {"there": False}
    record = artifact.record
    return {
        "there": True,
        **cost_of(artifact),
        "finished": record.get("finished"),
        "settings": dict(record["settings"]),
        "lineage": dict(record["lineage"]),
    }


def _shards(upstream: Upstream, embeddings: Artifact) -> list[dict[str, Any]]:
    """Find the shards that embeddings were joined from: by teacher, settings and their rows' keys.

    Where vectors were carried over from an earlier state, which rows were fresh is not known here.
    """
    record = embeddings.record
    if upstream.pairs is None or "earlier" in record["lineage"]:
        return []
    held = {
        artifact.record["lineage"].get("rows"): artifact
        for artifact in upstream.store.artifacts(upstream.name, "shard")
        if artifact.record["settings"] == record["settings"]
        and artifact.record["lineage"].get("weights") == record["lineage"]["weights"]
    }
    keys = read_keys(upstream.pairs)
    sizes = sorted({artifact.counts["rows"] for artifact in held.values()}, reverse=True)
    found, start = [], 0
    while start < len(keys):
        contents = (content_of(keys[start : start + size].to_pylist()) for size in sizes)
        artifact = next((held[content] for content in contents if content in held), None)
        if artifact is None:
            return []
        found.append(artifact)
        start += artifact.counts["rows"]
    line = _record(found[0]) | {"parts": len(found)}
    for name in ("seconds", "bytes"):
        line[name] = round(sum(_record(each)[name] or 0 for each in found), 3)
    line["peak_mb"] = max(each.record.get("peak_mb") or 0.0 for each in found)
    first = found[0].fingerprint + (" ..." if len(found) > 1 else "")
    return [{"dataset": upstream.name, "stage": "shards", "fingerprint": first} | line]
