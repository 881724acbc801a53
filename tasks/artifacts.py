"""What a person sees on a run's page in the Prefect UI."""

import contextlib
import re
import time
from collections.abc import Mapping
from typing import Any

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from b3_core.artifacts import Artifact
from b3_core.evaluate.compare import sentences
from b3_core.evaluate.retrieval import METRICS
from b3_core.manifest import Manifest
from b3_core.progress import Progress, silent
from b3_core.report.dataset import Options
from b3_core.report.describe import describe
from b3_core.report.markdown import summary

_PROGRESS_SECONDS = 2  # between two updates of a bar


#: Of a manifest's slots, those that the run's page looks at: a second or two.
_LOOKED_AT = Options(rows=16_384, batches=0, make_paper=False)
#: Bytes of what a manifest stands on beyond which it is not looked at: all would be fetched, to a
#: machine that need not be the one that mined. About half a million rows.
_MOST_BYTES = 1_000_000_000


def publish_manifests(pipeline: str, manifests: Mapping[tuple[str, int], Artifact]) -> None:
    """Summarise the manifests of all (arm, seed): what is in them, how hard their batches are.

    Partners are means over the rows of the first dataset, in the communities of the last phase.
    Below that, for the first seed of each arm, the figures of ``b3 report``.
    """
    lines = [
        "| arm | seed | batches | rows left out | window partners | too hard |",
        "|-|-|-|-|-|-|",
    ]
    places = []
    for (arm, seed), artifact in manifests.items():
        head = Manifest.read_head(artifact)
        quality = head["datasets"][0]["quality"][head["variant_of_epoch"][-1]]
        lines.append(
            f"| {arm} | {seed} | {head['batches']:,} of {head['batch_size']} rows "
            f"| {head['left_out']:,} | {quality['window']:.2f} | {quality['too_hard']:.2f} |"
        )
        places.append(f"- {arm}, seed {seed}: `{artifact.uri}`")
    lines += ["", *places, "", "Check one: `b3 verify URI`. Compare two: `b3 diff URI URI`."]
    lines += ["A page about one, or two side by side: `b3 report URI [URI]`."]
    first = {arm: artifact for (arm, _), artifact in reversed(manifests.items())}
    for arm in dict.fromkeys(arm for arm, _ in manifests):
        lines += ["", f"## {arm}", "", _figures(first[arm])]
    create_markdown_artifact(
        "\n".join(lines), key=_key(pipeline, "manifests"), description="Mined batches"
    )


def _figures(manifest: Artifact) -> str:
    head = Manifest.read_head(manifest)
    if head["settings"]["batches"]["mixing"] == "across":
        return "Batches are drawn over all datasets: there are no ranks to compare their rows by."
    lineage = head["lineage"]
    held = sum(size for files in lineage.values() for size, _ in files.values())
    if held > _MOST_BYTES:
        return f"Not looked at, since it stands on {held / 1e9:.1f} GB: `b3 report {manifest.uri}`"
    return summary(describe(manifest, _LOOKED_AT))


def publish_benchmarks(pipeline: str, table: Artifact) -> None:
    """Show the report of benchmarks, and where result files are."""
    text = table.path("report.md").read_text(encoding="utf-8")
    create_markdown_artifact(
        f"{text}\n\nResult files: `{table.uri}`",
        key=_key(pipeline, "benchmarks"),
        description="Benchmarks beside published rows",
    )


def publish_results(pipeline: str, results: dict[str, Any]) -> None:
    """Show the arms side by side, and the differences between them."""
    rows = [
        {
            "arm": row["arm"],
            "seeds": len(row["seeds"]),
            **{name: f"{row[name]:.4f}" for name in METRICS},
        }
        for row in results["arms"]
    ]
    said = "; ".join(sentences(results["differences"]))
    create_table_artifact(rows, key=_key(pipeline, "arms"), description=said or "One arm")


def publish_promotion(pipeline: str, decision: dict[str, Any], history: list[Any]) -> None:
    """Show what became of the new student, and of those before it."""
    lines = [
        f"**{decision['status']}**: {decision['why']}",
        "",
        f"- student `{decision['student']}`",
        f"- manifest `{decision['manifest']}`",
        "",
        "| when | student | status | why |",
        "|-|-|-|-|",
    ]
    for each in reversed(history):
        lines.append(
            f"| {each['when']} | `{'/'.join(each['student'])}` | {each['status']} | {each['why']} |"
        )
    create_markdown_artifact(
        "\n".join(lines), key=_key(pipeline, "promotion"), description="Which student is in place"
    )


def open_progress(title: str) -> Progress:
    """Show a bar on the run's page; what is returned is told (done, total) from any thread.

    Progress is a courtesy: where it cannot be shown, the work goes on.
    """
    try:
        artifact = create_progress_artifact(0.0, description=title)
    except Exception:  # the server is away for a moment
        return silent
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if total and (done == total or now - last > _PROGRESS_SECONDS):
            last = now
            with contextlib.suppress(Exception):
                update_progress_artifact(artifact, progress=100.0 * done / total)

    return show


def _key(pipeline: str, kind: str) -> str:
    """Name an artifact as Prefect allows it: small letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", f"{pipeline}-{kind}".lower()).strip("-")
