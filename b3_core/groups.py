"""Which rows answer one another's queries: positives told apart, and joined into groups.

Legend: N rows.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def group_ids(
    positive_N: pa.ChunkedArray, mark_N: pa.ChunkedArray | None = None
) -> npt.NDArray[np.int32]:
    """Give every row the number of its group, counted in order of first appearance.

    Rows with equal ``positive_N``, or with equal ``mark_N`` where given, are in one group: the
    groups are the connected components of the graph between positives and marks whose edges are
    the rows.

    Parameters
    ----------
    positive_N, mark_N
        Text, without nulls.

    Returns
    -------
    numpy.ndarray
        int32, N.
    """
    code_N = codes(positive_N)
    if mark_N is None:
        return code_N
    # Positives are the first nodes, in order of appearance, and components are numbered by node.
    first_mark = code_N.max(initial=-1) + 1
    node_N = first_mark + codes(mark_N)
    nodes = node_N.max(initial=-1) + 1
    edges = coo_array((np.ones(len(node_N), bool), (code_N, node_N)), shape=(nodes, nodes))
    component: npt.NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return component[code_N]


def identities(rows: pa.Table, side: str = "positive") -> pa.ChunkedArray:
    """Return what tells positives apart: text, and the bytes beside it if there are any."""
    if f"{side}_medium" not in rows.column_names:
        return rows[side]
    digest_N = pc.struct_field(rows[f"{side}_medium"], "digest")
    return pc.if_else(
        pc.equal(digest_N, ""),
        rows[side],
        pc.binary_join_element_wise(rows[side], digest_N, "\0"),
    )


def check_groups(table: pa.Table) -> None:
    """Raise ValueError if rows with the same positive are in different groups."""
    code_N = codes(identities(table))
    group_N = table["group"].to_numpy()
    group_of = np.zeros(code_N.max(initial=-1) + 1, np.int32)
    group_of[code_N] = group_N
    if (group_of[code_N] != group_N).any():
        raise ValueError("rows with the same positive are in different groups")


def codes(text_N: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    """Give equal texts the same number, from 0, in order of first appearance."""
    # The distinct texts of a large dataset outgrow the 2 GiB that a string array can address.
    encoded = text_N.cast(pa.large_string()).dictionary_encode()
    codes = [chunk.indices.to_numpy() for chunk in encoded.chunks]
    return np.concatenate([np.zeros(0, np.int32), *codes])
