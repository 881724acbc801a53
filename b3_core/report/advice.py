"""What is wrong with a plan, in words with numbers, each with what to do.

    figures of a dataset -> sentences

The bounds below say from where on a figure is worth a sentence; they are no targets.
"""

from collections.abc import Mapping
from typing import Any

ISOLATED = 0.10  # share of rows without a window edge
NONE_MINED = 0.5  # the same, from where on mining itself is in doubt
LIKE_RANDOM = 1.5  # times the window partners of random communities
MOVED = 0.5  # share of rows that are not where the partitioner put them
LIKELY_PAIRS = 0.03  # share of pairs that are likely false negatives, beyond that of random batches
TOO_HARD = 0.5  # too-hard partners a window partner
MEETING = 0.005  # share of slots that meet a duplicate
LEFT_OUT = 0.05  # share of an epoch's rows
WEAK = 0.1  # share of rows whose own positive the teacher ranks first
WIDE = 0.25  # share of the dataset that a window holds
RECALL = 0.9  # of the window that an approximate search found


def advise(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what to know of one dataset before training on it.

    Parameters
    ----------
    figures
        As :func:`b3_core.report.describe.describe` has them for a dataset.

    Returns
    -------
    list
        ``kind``, ``says`` and ``remedy``, the gravest first.
    """
    found = [rule(figures) for rule in _RULES]
    return [
        {"kind": kind, "dataset": figures["name"], "says": says, "remedy": remedy}
        for entry in found
        if entry is not None
        for kind, says, remedy in [entry]
    ]


def gravest(figures: Mapping[str, Any]) -> list[str]:
    """Return what says that mining came to next to nothing, with its remedy: few figures tell it.

    Parameters
    ----------
    figures
        As :func:`advise` takes them, of which ``name, rows, labelled, p, m, partitioner, edges``
        and ``communities`` are enough.
    """
    lost = (figures["edges"].get("isolated") or 0.0) >= NONE_MINED
    found = (_isolated(figures) if lost else None) or _like_random(figures)
    return [f"{figures['name']}: {found[1]}; {found[2]}"] if found else []


_Said = tuple[str, str, str] | None


def _isolated(figures: Mapping[str, Any]) -> _Said:
    share = figures["edges"].get("isolated")
    if share is None or share < ISOLATED:
        return None
    says = f"{share:.0%} of rows have no window edge: "
    if _cut_short(figures) and _window(figures) == 0:
        return (
            "isolated",
            f"{says}mining.p = {figures['p']} leaves no window in {figures['rows']:,} rows",
            "a smaller mining.p",
        )
    if _cut_short(figures):
        return (
            "isolated",
            f"{says}mining.p = {figures['p']} leaves a window of {_window(figures)} ranks, not "
            f"{figures['m']}",
            "a smaller mining.p, a stronger teacher, or mining.graph: union",
        )
    wider = "" if _wide(figures) else ", or a larger mining.m"
    return (
        "isolated",
        f"{says}the teacher may be weak, or the window too narrow",
        f"try a stronger teacher{',' if wider else ' or'} mining.graph: union{wider}",
    )


def _window(figures: Mapping[str, Any]) -> int:
    """Return how many ranks the window has: of N rows each has N - 1 others, of which p go."""
    ranks: int = max(figures["rows"] - 1 - figures["p"], 0)
    return min(int(figures["m"]), ranks)


def _cut_short(figures: Mapping[str, Any]) -> bool:
    return not figures["labelled"] and _window(figures) < figures["m"]


def _like_random(figures: Mapping[str, Any]) -> _Said:
    quality = figures["communities"]
    window, drawn = quality.get("window"), quality.get("random_window")
    if figures["partitioner"] == "random" or not drawn or window is None:
        return None
    if window >= LIKE_RANDOM * drawn:
        return None
    return (
        "like-random",
        f"a row has {window:.2f} window partners in its community, at random {drawn:.2f}: "
        "mining found next to nothing",
        "try a stronger teacher, or a smaller mining.k",
    )


def _false_negatives(figures: Mapping[str, Any]) -> _Said:
    found, drawn = (
        (figures["batches"][arm] or {}).get("false_negatives") or {} for arm in ("mined", "random")
    )
    share, floor = found.get("share_of_pairs"), drawn.get("share_of_pairs") or 0.0
    if share is None or share - floor < LIKELY_PAIRS:
        return None
    cutoff = "" if _cut_short(figures) else "mining.p or "
    return (
        "false-negatives",
        f"{share:.1%} of in-batch pairs score at least {found['threshold']} of the row's own "
        f"positive, of random pairs {floor:.1%}: false negatives, as far as the teacher is right",
        f"raise {cutoff}mining.repulsion; give a group column for rows that answer one another",
    )


def _too_hard(figures: Mapping[str, Any]) -> _Said:
    quality = figures["communities"]
    window, hard = quality.get("window"), quality.get("too_hard")
    if not window or hard is None or hard < TOO_HARD * window:
        return None
    return (
        "too-hard",
        f"a community holds {hard:.2f} partners a row at ranks below p = {figures['p']}, beside "
        f"{window:.2f} in the window",
        "set mining.repulsion to 1, or a smaller mining.p if they are sound",
    )


def _duplicates(figures: Mapping[str, Any]) -> _Said:
    found = figures["repeats"]
    if found is None or not found["same_group"]:
        return None
    return (
        "groups",
        f"batches hold duplicates: {found['same_group']:,} of {found['slots']:,} slots meet a row "
        "of their own group; the loss must mask them",
        "use GroupedInfoNCE or MinedBatches' labels; drop repeated positives, or a smaller batch",
    )


def _texts(figures: Mapping[str, Any]) -> _Said:
    found = figures["repeats"]
    if found is None:
        return None
    worst = max(("same_query", "same_positive"), key=lambda name: found[name])
    if found[worst] < MEETING * found["slots"]:
        return None
    side = "query" if worst == "same_query" else "positive"
    return (
        "texts",
        f"{found[worst]:,} of {found['slots']:,} slots meet the same {side} text in another group: "
        "false negatives that no loss masks",
        f"set datasets[].group to a column that is the same where the {side} is",
    )


def _overlap(figures: Mapping[str, Any]) -> _Said:
    says = figures["cautions"].get("overlap")
    return says and (
        "overlap",
        f"{says}: what is measured on them may be too high",
        "name an eval_uri of other rows, or leave it out: some groups are then held out",
    )


def _skipped(figures: Mapping[str, Any]) -> _Said:
    says = figures["cautions"].get("skipped")
    return says and ("skipped", says, "mend what skipped.parquet of the pairs lists")


def _moved(figures: Mapping[str, Any]) -> _Said:
    share = figures["moved_share"]
    if share is None or share < MOVED or figures["partitioner"] == "random":
        return None
    return (
        "moved",
        f"{share:.0%} of rows were moved to reach communities of exactly {figures['k']}: the graph "
        "falls into parts of other sizes",
        "try another mining.k or mining.resolution, or mining.graph: union",
    )


def _left_out(figures: Mapping[str, Any]) -> _Said:
    share = figures["left_out_share"]
    if share < LEFT_OUT:
        return None
    return (
        "left-out",
        f"an epoch leaves out {share:.0%} of the rows, other ones each time",
        "a smaller batches.batch_size, or more rows",
    )


def _weak(figures: Mapping[str, Any]) -> _Said:
    share = figures["teacher"].get("hit@1")
    if share is None or share >= WEAK:
        return None
    return (
        "weak-teacher",
        f"the teacher ranks a row's own positive first for {share:.1%} of rows: its windows and "
        "its false negatives are rough estimates",
        "try a stronger teacher (teacher.model), with the prompts it was trained with",
    )


def _wide(figures: Mapping[str, Any]) -> _Said:
    rows, window = figures["rows"], _window(figures)
    if figures["labelled"] or window < WIDE * rows:
        return None
    return (
        "wide",
        f"a window of {window} ranks is {window / rows:.0%} of the {rows:,} rows: being in it says "
        "little",
        "a smaller mining.m",
    )


def _recall(figures: Mapping[str, Any]) -> _Said:
    recall = figures["teacher"].get("window_recall")
    if recall is None or recall >= RECALL:
        return None
    return (
        "recall",
        f"the approximate search found {recall:.0%} of the windows",
        "mining.search: exact"
        if figures["teacher"].get("cells", 1) == 1
        else "more of mining.cell_lists, or no mining.cell_rows if the dataset fits in one piece",
    )


_RULES = (
    _isolated,
    _like_random,
    _weak,
    _false_negatives,
    _texts,
    _too_hard,
    _duplicates,
    _overlap,
    _skipped,
    _moved,
    _left_out,
    _wide,
    _recall,
)
