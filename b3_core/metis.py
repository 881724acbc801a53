"""METIS (Karypis and Kumar 1998, 10.1137/S1064827595287997) in a process of its own.

METIS draws from the C library's ``rand``, whose one state belongs to the whole process. Threads of
Ray and of torch draw from it too, so beside them the same graph and seed now and then give other
parts. This file, run as a script, is a process in which nothing else runs; it needs no more of
this package than itself.

Legend: N rows, E directed edges, C cuts.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_GRAPH, _PARTS = "graph.npz", "parts.npy"

Whole = npt.NDArray[np.int64]


def part_graph(
    indptr: Whole,
    indices: Whole,
    weight_E: Whole,
    *,
    parts: int,
    tolerances: Sequence[float | None] = (None,),
) -> Whole:
    """Cut a graph so that little weight runs between parts of nearly equal size.

    Parameters
    ----------
    indptr, indices
        The symmetric graph as CSR: N + 1 and E values.
    weight_E
        Positive whole weights of the edges.
    parts
        Parts to make.
    tolerances
        By what share the largest part may be above the mean, for each of the cuts to make; None
        is METIS's default, 0.03.

    Returns
    -------
    numpy.ndarray
        A cut a row: N labels from 0 to ``parts`` - 1. A part may be empty. The same arguments
        give the same cuts.

    Raises
    ------
    RuntimeError
        The process failed; the message ends with the last line it said.
    """
    options = [
        {} if tolerance is None else {"ufactor": max(round(1000 * tolerance), 1)}
        for tolerance in tolerances
    ]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, _GRAPH), indptr=indptr, indices=indices, weight_E=weight_E)
        # -P: else the folder of this file, with its own modules, would come first on the path.
        done = subprocess.run(
            [sys.executable, "-P", __file__, folder, str(parts), json.dumps(options)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"METIS ended with exit code {done.returncode}: {said[-1]}")
        label_CN: Whole = np.load(Path(folder, _PARTS), allow_pickle=False)
    return label_CN


def _main(folder: str, parts: str, options: str) -> None:
    import pymetis  # noqa: PLC0415 - only here, in the process of its own

    with np.load(Path(folder, _GRAPH), allow_pickle=False) as graph:
        adjacency, weight_E = (
            pymetis.CSRAdjacency(graph["indptr"], graph["indices"]),
            graph["weight_E"],
        )
    cuts = [
        pymetis.part_graph(
            int(parts), adjacency, eweights=weight_E, options=pymetis.Options(**chosen)
        ).vertex_part
        for chosen in json.loads(options)
    ]
    np.save(Path(folder, _PARTS), np.array(cuts, np.int64))


if __name__ == "__main__":
    _main(*sys.argv[1:])
