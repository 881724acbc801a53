"""A manifest described: everything that the page shows, as one plain dict."""

from collections.abc import Mapping
from typing import Any

from b3_core.artifacts import Artifact
from b3_core.batches import BatchPlan
from b3_core.config import BatchSpec, MiningSpec
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.manifest import Manifest
from b3_core.progress import Progress, silent
from b3_core.report.dataset import Dataset, Options
from b3_core.report.meetings import LIKELY
from b3_core.report.stages import stages, totals
from b3_core.report.stored import Upstream
from b3_core.store import ArtifactStore

VERSION = 1

METHOD = (
    f"An in-batch partner is a likely false negative where the teacher scores it at least {LIKELY} "
    "of the row's own positive (positive-aware mining's rule: NV-Retriever, arXiv 2407.15831); "
    "rows whose own positive scores 0 or less are not judged, rows of one group are not pairs."
)


def describe(
    artifact: Artifact, options: Options | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Describe a manifest by its own files and what is still there of those it was made from.

    Returns
    -------
    dict
        Plain JSON: ``manifest, plan, settings, datasets, stages, totals, sampling, advice, gone``;
        ``batches`` to read hold texts of the data, and thumbnails.

    Raises
    ------
    InputError
        The artifact is no manifest, or one whose batches have rows of several datasets.
    CorruptArtifactError
        Its own files are not what was written.
    """
    options = options or Options()
    manifest = Manifest.load(artifact)
    head, plan = manifest.head, manifest.plan
    try:
        plan.check([entry["rows"] for entry in head["datasets"]])
    except ValueError as error:
        raise CorruptArtifactError(f"{artifact.uri}: {error}", remedy="mine again") from error
    if plan.is_across:
        raise InputError(
            f"{artifact.uri} draws its batches over all datasets, whose rows no ranks compare",
            expected="a manifest whose batches are of one dataset each",
            remedy="look at a mined arm, or at same-dataset as the control",
        )
    store = artifact.store
    assert isinstance(store, ArtifactStore)
    upstreams = [Upstream(store, entry, head["lineage"]) for entry in head["datasets"]]
    datasets, batches = [], []
    for number, upstream in enumerate(upstreams):
        progress(number, len(upstreams))
        one = Dataset(artifact, manifest, upstream, number=number, options=options)
        described, read = one.describe()
        datasets.append(described)
        batches += read
    progress(len(upstreams), len(upstreams))
    lines = stages(artifact, upstreams)
    return {
        "version": VERSION,
        "manifest": artifact.uri,
        "plan": _plan_of(head, plan),
        "settings": settings_of(head),
        "libraries": head["libraries"],
        "datasets": datasets,
        "stages": lines,
        "totals": totals(lines, options.hourly),
        "sampling": {"rows": options.rows, "seed": options.seed, "method": METHOD},
        "advice": [each for described in datasets for each in described["advice"]],
        "gone": [sentence for upstream in upstreams for sentence in upstream.gone],
        "batches": batches,
    }


def settings_of(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every setting of mining and batches: ``key, value, default``."""
    sections = {"mining": MiningSpec(), "batches": BatchSpec()}
    rows = []
    for section, spec in sections.items():
        own = spec.model_dump(mode="json")
        for key, value in head["settings"][section].items():
            default = own.get(key)
            rows.append({"key": f"{section}.{key}", "value": value, "default": default})
    rows.append({"key": "seed", "value": head["settings"]["seed"], "default": None})
    if "leg" in head["settings"]:
        rows.append({"key": "leg", "value": head["settings"]["leg"], "default": 0})
    return rows


def _plan_of(head: Mapping[str, Any], plan: BatchPlan) -> dict[str, Any]:
    return {
        "batch_size": head["batch_size"],
        "k": head["k"],
        "batches": head["batches"],
        "epochs": len(head["variant_of_epoch"]),
        "rows": sum(entry["rows"] for entry in head["datasets"]),
        "examples": head["batches"] * head["batch_size"],
        "left_out": head["left_out"],
        "duplicates": head["duplicates"],
        "negatives": head["negatives"],
        "negatives_short": head["negatives_short"],
        "seed": head["settings"]["seed"],
        "leg": head["settings"].get("leg", 0),
        "random_share": float((plan.community_SB < 0).mean()),
        "partitioner": head["settings"]["mining"]["partitioner"],
    }
