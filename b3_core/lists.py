"""Lists of vectors that are close together: k-means, in two levels where lists are many.

    vectors -> a sample of them -> k-means: groups -> k-means of each group's sample: lists
            -> every row to the nearest list, of those of its group and of the groups around it

In one level every row is compared with every list, which grows with the square of the rows; in two
with the power of 1.5. What is lost is rows that are nearer to a list of a group further away.

Legend: N rows, D width of a vector, L lists, G groups, X rows of a sample or a block, T groups near
one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from b3_core import search
from b3_core.machine import cores
from b3_core.progress import Progress, silent

#: As many lists at most are found in one level. Of 300,000 drawn rows .984 of windows are in 384 of
#: 1,171 lists then, .976 in two levels. It is a million rows, and a minute of two cores.
ONE_LEVEL = 4096
_ROUNDS = 5  # of k-means; ten find .0007 more
_SAMPLE = 64  # rows a list that k-means looks at
_GROUP_SAMPLE = 1024  # and rows a group
_AROUND = 16  # groups whose lists a row is compared with, its own among them; .972 with 8
_BLOCK = 1 << 15  # rows looked at together
_PLACERS = 8  # blocks looked at side by side, at most: each takes memory
_SEED = 1

Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


def find_lists(
    read: Callable[[Any], Vectors], *, rows: int, lists: int, progress: Progress = silent
) -> tuple[Vectors, npt.NDArray[np.int32]]:
    """Cut vectors into lists.

    The same vectors give the same lists: sums are made on one thread, from a fixed seed. Blocks of
    rows are placed side by side.

    Parameters
    ----------
    read
        A slice or an array of rows -> their vectors, (X, D).
    rows, lists
        N, and about how many lists there should be.
    progress
        Told how many rows are placed, of N.

    Returns
    -------
    centre_LD, list_N
        Unit centres, and the list of every row. A list may be empty.
    """
    if lists <= ONE_LEVEL:
        sample = _sampled(rows, lists * _SAMPLE)
        centre_LD = _train(read(sample), lists, _SAMPLE)
        groups = centre_LD[:1], [np.arange(len(centre_LD))]
    else:
        centre_LD, groups = _two_levels(read, rows, lists)
    list_N = np.empty(rows, np.int32)
    blocks = [slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]

    def place(at: slice) -> int:
        list_N[at] = _nearest_list(read(at), groups, centre_LD)
        return len(list_N[at])

    done = 0
    with ThreadPoolExecutor(min(cores(), _PLACERS)) as threads:
        for placed in threads.map(place, blocks):
            done += placed
            progress(done, rows)
    return centre_LD, list_N


def _sampled(rows: int, most: int) -> Places:
    return np.sort(np.random.default_rng(_SEED).choice(rows, min(rows, most), replace=False))


def _two_levels(
    read: Callable[[Any], Vectors], rows: int, lists: int
) -> tuple[Vectors, tuple[Vectors, list[Places]]]:
    """Return centres; and of groups their centres, and the lists that their rows may be in.

    Read are one block or one group's sample at a time.
    """
    sample = _sampled(rows, lists * _SAMPLE)
    groups = round(lists**0.5)
    few = sample[_sampled(len(sample), groups * _GROUP_SAMPLE)]
    centre_GD = _train(read(few), groups, _GROUP_SAMPLE)
    near_X = np.concatenate(
        [
            search.nearest(read(sample[start : start + _BLOCK]), centre_GD, 1)[:, 0]
            for start in range(0, len(sample), _BLOCK)
        ]
    )
    used, group_X = np.unique(near_X, return_inverse=True)
    centre_GD, share = centre_GD[used], lists / len(sample)
    found = []
    for group in range(len(used)):
        part = sample[group_X == group]
        found.append(_train(read(part), max(1, round(share * len(part))), _SAMPLE))
    start_G = np.cumsum([0, *map(len, found)])
    near_GT = search.nearest(centre_GD, centre_GD, min(_AROUND, len(centre_GD)))
    among_G = [
        np.concatenate([np.arange(start_G[near], start_G[near + 1]) for near in near_T])
        for near_T in near_GT
    ]
    return np.concatenate(found), (centre_GD, among_G)


def _train(sample_XD: Vectors, centres: int, most: int) -> Vectors:
    """Find centres by spherical k-means over at most ``most`` rows for each."""
    if len(sample_XD) <= centres:
        return sample_XD
    with search.one_thread() as faiss:
        trained = faiss.Kmeans(
            sample_XD.shape[1],
            centres,
            niter=_ROUNDS,
            seed=_SEED,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=most,
        )
        trained.train(sample_XD)
    return np.asarray(trained.centroids)


def _nearest_list(
    vector_XD: Vectors, groups: tuple[Vectors, list[Places]], centre_LD: Vectors
) -> Places:
    """Return the nearest list of each row, of those that its group is compared with."""
    centre_GD, among_G = groups
    group_X = search.nearest(vector_XD, centre_GD, 1)[:, 0]
    found_X = np.empty(len(vector_XD), np.int64)
    for group in np.unique(group_X):
        here, among = group_X == group, among_G[group]
        found_X[here] = among[search.nearest(vector_XD[here], centre_LD[among], 1)[:, 0]]
    return found_X
