"""What a person sees on a run's page in the Prefect UI."""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from b3_core.artifacts import Artifact
from b3_core.manifest import Manifest

_METRICS = ("hit@1", "hit@5", "hit@10", "mrr", "ndcg@10")


def publish_manifests(manifests: Sequence[Artifact]) -> None:
    """Summarise manifests: where they are, what is in them, how hard their batches are."""
    lines = ["| manifest | batches | left out | window partners | too hard |", "|-|-|-|-|-|"]
    for artifact in manifests:
        head = Manifest.read_head(artifact)
        quality = head["datasets"][0]["quality"]
        lines.append(
            f"| `{artifact.uri}` | {head['batches']} of {head['batch_size']} rows "
            f"| {head['left_out']} rows | {quality['window']:.2f} | {quality['too_hard']:.2f} |"
        )
    create_markdown_artifact("\n".join(lines), key="manifests", description="Mined batches")


def publish_results(results: dict[str, Any]) -> None:
    """Show the arms side by side, and the differences to the random arm."""
    rows = [
        {
            "arm": row["arm"],
            "seeds": len(row["seeds"]),
            **{name: f"{row[name]:.4f}" for name in _METRICS},
        }
        for row in results["arms"]
    ]
    lines = [
        f"{pair}: MRR {d['mean']:+.4f} (95 % interval {d['low']:+.4f} to {d['high']:+.4f})"
        for pair, d in results["differences"].items()
    ]
    create_table_artifact(rows, key="arms", description="; ".join(lines) or "One arm")
