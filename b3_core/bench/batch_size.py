"""What a mined batch is worth: arms by batch sizes, at equal examples seen.

results of a pipeline for each size -> a row an arm and size -> the random batch each equals
"""

from collections.abc import Mapping, Sequence
from typing import Any

from b3_core.config import PipelineSpec


def of_size(spec: PipelineSpec, size: int) -> PipelineSpec:
    """Return CONFIG with another batch size; all else, and so the examples seen, is the same."""
    data = spec.model_dump()
    return PipelineSpec.model_validate({**data, "batches": {**data["batches"], "batch_size": size}})


def rows_of(size: int, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row an arm: ``arm, batch_size, mrr, low, high, seeds, less_random``.

    ``low`` and ``high`` are the 95 % interval of MRR over seeds and queries; ``less_random`` is the
    paired difference from random batches of the same size, and None for those.
    """
    return [
        {
            "arm": row["arm"],
            "batch_size": size,
            "mrr": row["mrr"],
            "low": row["mrr_low"],
            "high": row["mrr_high"],
            "seeds": len(row["seeds"]),
            "less_random": results["differences"].get(f"{row['arm']} - random"),
        }
        for row in results["arms"]
    ]


def with_worth(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``worth``: the smallest random batch, of those measured, that does as well or better.

    None where no random batch does. A random batch is worth its own size.
    """
    random = {row["batch_size"]: row["mrr"] for row in rows if row["arm"] == "random"}
    found = []
    for row in rows:
        as_good = [size for size, mrr in random.items() if mrr >= row["mrr"]]
        worth = row["batch_size"] if row["arm"] == "random" else min(as_good, default=None)
        found.append({**row, "worth": worth})
    return found
