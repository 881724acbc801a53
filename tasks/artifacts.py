"""What a person sees on a run's page in the Prefect UI."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from b3_core.artifacts import Artifact
from b3_core.evaluate.compare import sentences
from b3_core.evaluate.retrieval import METRICS
from b3_core.manifest import Manifest


def publish_manifests(manifests: Mapping[tuple[str, int], Artifact]) -> None:
    """Summarise the manifests of all (arm, seed): what is in them, how hard their batches are.

    Partners are means over the rows of the first dataset, in the communities of the last phase.
    """
    lines = [
        "| arm | seed | batches | rows left out | window partners | too hard | manifest |",
        "|-|-|-|-|-|-|-|",
    ]
    for (arm, seed), artifact in manifests.items():
        head = Manifest.read_head(artifact)
        quality = head["datasets"][0]["quality"][-1]
        lines.append(
            f"| {arm} | {seed} | {head['batches']:,} of {head['batch_size']} rows "
            f"| {head['left_out']:,} | {quality['window']:.2f} | {quality['too_hard']:.2f} "
            f"| `{artifact.uri}` |"
        )
    create_markdown_artifact("\n".join(lines), key="manifests", description="Mined batches")


def publish_results(results: dict[str, Any]) -> None:
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
    create_table_artifact(rows, key="arms", description=said or "One arm")
