"""A few thousand rows of somebody's data, and the same CONFIG on them.

Legend: n rows of a sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from b3_core.config import ArmSpec, BatchSpec, DatasetSpec, MiningSpec, Phase, PipelineSpec
from b3_core.dataset_stage import Pairs
from b3_core.errors import InputError
from b3_core.forecast.jobs import Rows
from b3_core.glance import count_rows, draw_rows, holds_tars
from b3_core.store import ArtifactStore

_MEDIA_ROWS = 1024  # each holds a picture, or a path of one that will be decoded
_HELDOUT_ROWS = 256


@dataclass(frozen=True)
class Sample:
    """Some rows of each dataset of a CONFIG, in no order, as files."""

    spec: PipelineSpec
    """CONFIG, with the datasets' uris those of the sample."""
    rows: Mapping[str, int]

    def cut(self, folder: Path, rows: int) -> PipelineSpec:
        """Return CONFIG on the first ``rows`` rows of each dataset, in a store below ``folder``."""
        folder.mkdir(parents=True)
        datasets = []
        for dataset in self.spec.datasets:
            file = folder / f"{dataset.name}.parquet"
            pq.write_table(pq.read_table(dataset.uri).slice(0, rows), file)
            datasets.append(dataset.model_copy(update={"uri": str(file)}))
        store = self.spec.store.model_copy(update={"root": str(folder / "store")})
        return self.spec.model_copy(update={"datasets": tuple(datasets), "store": store})


def rows_of(dataset: DatasetSpec, spec: PipelineSpec, store: ArtifactStore | None) -> Rows:
    """Return how many rows a dataset has, as far as can be told without reading it.

    What the store has read is exact; else files are asked, and what will be held out is estimated.
    """
    if store is not None:
        found = store.find(Pairs.of(dataset, spec.evaluate).address)
        if found is not None:
            return Rows(found.counts["rows"], found.counts["heldout"])
    rows = count_rows(dataset.uri)
    most = spec.evaluate.max_queries
    if dataset.eval_uri is not None:
        return Rows(rows, min(most, count_rows(dataset.eval_uri)))
    held = min(most, max(1, round(spec.evaluate.holdout * rows)))
    return Rows(max(rows - held, 1), held)


def draw(spec: PipelineSpec, folder: Path, *, rows: int) -> Sample:
    """Draw rows of every dataset of a CONFIG, and write them into ``folder``.

    Raises
    ------
    InputError
        A dataset cannot be read, or consists of tars.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    datasets, counts = [], {}
    for dataset in spec.datasets:
        if holds_tars(dataset.uri):
            raise InputError(
                f"b3 plan draws no samples of tars: {dataset.uri}",
                expected="parquet or Arrow files",
                remedy="mine a part of it first, and look at its record",
            )
        texts = {
            role: column
            for role in ("query", "positive", "group", "negative")
            if (column := getattr(dataset, role)) is not None
        }
        media = {name for kinds in dataset.media_columns.values() for name in kinds.values()}
        # Pictures take long to look at, but what is drawn must be more than a batch.
        batch = max(spec.arm(name)[1].batch_size for name in spec.arm_names)
        most = min(rows, max(_MEDIA_ROWS, 6 * batch)) if media else rows
        # Beside a picture a text may be blank; negatives of MMEB may be neither.
        may_lack = {*dataset.media_columns, *(["negative"] if dataset.layout == "mmeb" else [])}
        update: dict[str, object] = {
            "media": dataset.media.model_copy(update={"root": dataset.media_root, "bad": "skip"})
        }
        for field, limit in (("uri", most), ("eval_uri", _HELDOUT_ROWS)):
            uri = getattr(dataset, field)
            if uri is None:
                continue
            table = draw_rows(uri, texts, sorted(media), limit=limit, may_lack=may_lack)
            if field == "uri":
                table = table.take(pa.array(rng.permutation(len(table))))
                counts[dataset.name] = len(table)
            file = folder / f"{dataset.name}-{field}.parquet"
            pq.write_table(table, file)
            update[field] = str(file)
        datasets.append(dataset.model_copy(update=update))
    # A sample is one cell, and less.
    mining = spec.mining.model_copy(update={"cell_rows": None})
    arms = tuple(
        each
        if isinstance(each, str)
        else each.model_copy(update={"mining": {**each.mining, "cell_rows": None}})
        for each in spec.arms
    )
    changed = {
        "datasets": tuple(datasets),
        "incremental": False,
        "seeds": spec.seeds[:1],
        "mining": mining,
        "arms": arms,
    }
    return Sample(spec.model_copy(update=changed), counts)


def for_training(spec: PipelineSpec, *, rows: int, epochs: int) -> PipelineSpec:
    """Return a CONFIG of a sample whose batches cost as CONFIG's do, mined with little work.

    An arm for each batch size and number of negatives; all drawn at random.
    """
    kinds: dict[tuple[int, int], tuple[MiningSpec, BatchSpec]] = {}
    for name in spec.arm_names:
        mining, batches = spec.arm(name)
        kinds.setdefault((batches.batch_size, batches.negatives), (mining, batches))
    arms = []
    for number, (mining, batches) in enumerate(kinds.values()):
        curriculum = (Phase(epochs=epochs, random_share=1).model_dump(),)
        arms.append(
            ArmSpec(
                name=f"probe-{number}",
                mining={
                    "p": 0,
                    "m": max(1, min(mining.m, rows // 8)),
                    "k": batches.batch_size,
                    "search": "exact",
                    "partitioner": "random",
                    "swap_rounds": 0,
                    "evenness": 0.0,
                },
                batches={
                    "batch_size": batches.batch_size,
                    "negatives": batches.negatives,
                    "curriculum": curriculum,
                },
            )
        )
    return spec.model_copy(update={"arms": tuple(arms), "promote": None})
