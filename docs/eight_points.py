"""Draw the README's figure: eight rows followed from vectors to gradient.

    .venv/bin/python docs/eight_points.py        writes docs/eight_points.svg, prints the numbers

Four topics of two rows each lie on a circle. The same row is put in a random batch and in a mined
one; what differs is how much its in-batch negatives teach: the norm of the InfoNCE gradient with
respect to its query, temperature 0.1.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("svg")
from matplotlib import pyplot as plt

from b3_core.balance import balance
from b3_core.communities import find_communities
from b3_core.config import MiningSpec
from b3_core.graph import link, too_hard
from b3_core.neighbours import rank

TEMPERATURE = 0.1
POSITIVE_ANGLE = 4.0  # degrees between a query and its positive
QUERY_ANGLES = np.array([0.0, 30.0, 90.0, 120.0, 180.0, 210.0, 270.0, 300.0])
# One row of every topic in each batch: what drawing at random mostly gives with many topics.
RANDOM_BATCHES = np.array([[0, 2, 4, 6], [1, 3, 5, 7]])


def on_circle(degrees_N: np.ndarray) -> np.ndarray:
    """Return unit vectors at the given angles, shape (N, 2)."""
    radians = np.deg2rad(degrees_N)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def query_gradient(query_BD: np.ndarray, positive_BD: np.ndarray) -> np.ndarray:
    """Return the norm of d loss_i / d query_i of InfoNCE for every row of one batch."""
    logits_BB = query_BD @ positive_BD.T / TEMPERATURE
    probability_BB = np.exp(logits_BB - logits_BB.max(axis=1, keepdims=True))
    probability_BB /= probability_BB.sum(axis=1, keepdims=True)
    error_BB = probability_BB - np.eye(len(query_BD))
    return np.linalg.norm(error_BB @ positive_BD / TEMPERATURE, axis=1)


def mine_pairs(query_ND: np.ndarray, positive_ND: np.ndarray) -> np.ndarray:
    """Return the communities of two that the real stages find, one label a row."""
    spec = MiningSpec(p=0, m=1, k=2)
    rng = np.random.default_rng(0)
    ranks = rank(query_ND, positive_ND, group_N=np.arange(8, dtype=np.int32), width=1)
    window = link(ranks, p=0, m=1, mode="mutual")
    found = find_communities(window, spec, rng=rng)
    return balance(
        found,
        attract=window,
        repel=too_hard(ranks, p=0),
        group_N=np.arange(8, dtype=np.int32),
        spec=spec,
        rng=rng,
    ).label_N


def batches_of(label_N: np.ndarray) -> np.ndarray:
    """Two communities of two make a batch of four, shape (2, 4)."""
    return np.argsort(label_N, kind="stable").reshape(2, 4)


def figure(query_ND: np.ndarray, mined: np.ndarray, gradients: dict[str, np.ndarray]) -> plt.Figure:
    """Draw both ways of batching, and the gradient of every row under each."""
    drawn, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    colours = ("#0072b2", "#d55e00")
    greys = {"random": "#999999", "mined": "#009e73"}
    drawings = {"random": RANDOM_BATCHES, "mined": mined}
    for ax, (name, batches) in zip(axes[:2], drawings.items(), strict=True):
        for colour, batch in zip(colours, batches, strict=True):
            ax.scatter(*query_ND[batch].T, color=colour, s=60, zorder=2)
        for row, (x, y) in enumerate(query_ND):
            ax.annotate(str(row), (1.22 * x, 1.22 * y), ha="center", va="center")
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color="#999999", lw=0.6))
        ax.set(title=f"{name} batches of four", aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
        ax.axis("off")
    rows = np.arange(8)
    for offset, (name, colour) in zip((-0.2, 0.2), greys.items(), strict=True):
        axes[2].bar(rows + offset, gradients[name], 0.4, label=name, color=colour)
    axes[2].set(
        yscale="log", ylim=(5e-4, 20), title="gradient norm of each row", xlabel="row", xticks=rows
    )
    axes[2].legend(frameon=False, ncols=2, loc="upper center")
    return drawn


def main() -> None:
    """Compute, draw, print."""
    query_ND = on_circle(QUERY_ANGLES)
    positive_ND = on_circle(QUERY_ANGLES + POSITIVE_ANGLE)
    mined = batches_of(mine_pairs(query_ND, positive_ND))
    gradients = {}
    for name, batches in {"random": RANDOM_BATCHES, "mined": mined}.items():
        gradients[name] = np.zeros(8)
        for batch in batches:
            gradients[name][batch] = query_gradient(query_ND[batch], positive_ND[batch])
    target = Path(__file__).with_suffix(".svg")
    mpl.rcParams["svg.hashsalt"] = "b3"  # the same picture has the same bytes
    figure(query_ND, mined, gradients).savefig(target, metadata={"Date": None})
    ratio_8 = gradients["mined"] / gradients["random"]
    sys.stdout.write(f"mined batches {mined.tolist()}\n")
    for name, norm_8 in gradients.items():
        shown = np.array2string(norm_8, precision=4, suppress_small=True)
        sys.stdout.write(f"gradient norm, {name:<6} {shown}\n")
    sys.stdout.write(f"a row gets {ratio_8.min():.0f} to {ratio_8.max():.0f} times the gradient\n")


if __name__ == "__main__":
    main()
