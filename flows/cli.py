"""The command line ``b3``.

Prefect reads its settings when it is imported, so nothing here imports a flow before
``embedded.prepare`` has run: commands import what they need.
"""

import shutil
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from b3_core.config import load_config
from flows import bench, embedded, planning, report
from flows.export import export
from flows.init import init
from flows.output import Force, check_output, write_output
from flows.running import (
    AsJson,
    ConfigFile,
    Corpus,
    Pairs,
    Store,
    Teacher,
    Verbose,
    demo_config,
    run_command,
    run_flow,
)
from flows.terminal import change_rows, figures_table

app = typer.Typer(
    name="b3",
    help="Mine training batches full of in-batch negatives for embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    epilog="Begin with `b3 demo`, on data that is here already. For data of your own: "
    "`b3 init data.parquet` writes config.yaml, `b3 plan config.yaml` says what it will take, and "
    "`b3 run config.yaml` does it. `--json` on any of them prints one JSON object; `b3 COMMAND "
    "--help` has an example of each.",
)

_RUN, _LOOK, _MEASURE, _KEEP = "Run", "Look", "Measure", "Keep"  # panels of b3 --help


app.command(rich_help_panel=_RUN)(init)


@app.command(rich_help_panel=_RUN)
def demo(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows in a batch.")] = 64,
    teacher: Annotated[
        str | None,
        typer.Option(help="static, minilm, or a model folder.", show_default="the corpus's own"),
    ] = None,
    part: Annotated[str, typer.Option(help="Held-out part: test or validation.")] = "test",
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole pipeline on real pairs read from the packages installed beside it.

    Docstrings are queries, function bodies their positives; whole packages are held out. With
    `--corpus prose` first sentences of documentation are queries, what follows them their
    positives; whole services are held out. With `--corpus icons` (extra `icons`) pictures are
    queries and their names positives, ranked both ways. Arms see the same examples from the same
    initial weights: batches drawn at **random**, by the **paper**'s recipe, and by **b3**, which on
    texts mines again with the student after the first epoch; **paper-curriculum** does that too.

    Example: `b3 demo --pairs 20000 --seeds 3`
    """

    def work() -> dict[str, Any]:
        from flows.demo import compared  # noqa: PLC0415

        settings = compared(corpus)
        settings |= {
            "part": part,
            **({} if teacher is None else {"teacher": teacher}),
            "seeds": list(range(seeds)),
            "batches": {**settings["batches"], "batch_size": batch_size},
        }
        return run_flow("pipeline", demo_config(corpus, pairs, store, settings))

    run_command(work, as_json=as_json, verbose=verbose, keeps=True)


@app.command(rich_help_panel=_RUN)
def run(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Mine, train and evaluate as CONFIG says.

    Example: `b3 run config.yaml`
    """
    _run_flow("pipeline", config, as_json=as_json, verbose=verbose)


@app.command(rich_help_panel=_RUN)
def mine(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Mine batches and publish a manifest for every arm and seed of CONFIG.

    Example: `b3 mine config.yaml --json`
    """
    _run_flow("mine", config, as_json=as_json, verbose=verbose)


@app.command(rich_help_panel=_RUN)
def train(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Train a student on every manifest of CONFIG, mining first what is not mined.

    Example: `b3 train config.yaml`
    """
    _run_flow("train", config, as_json=as_json, verbose=verbose)


@app.command(rich_help_panel=_RUN)
def evaluate(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Evaluate the students of CONFIG, training first what is not trained.

    Example: `b3 evaluate config.yaml`
    """
    _run_flow("evaluate", config, as_json=as_json, verbose=verbose)


app.command(rich_help_panel=_LOOK)(planning.plan)
app.command(rich_help_panel=_LOOK)(report.report)


@app.command(rich_help_panel=_MEASURE)
def tune(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file; the demo's corpus if absent.")
    ] = None,
    *,
    trials: Annotated[int, typer.Option(min=2, help="Candidates, the default included.")] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the last round.")] = 4,
    output: Annotated[Path, typer.Option(help="Where the chosen CONFIG goes.")] = Path(
        "tuned.yaml"
    ),
    force: Force = False,
    refresh: Annotated[
        bool,
        typer.Option(help="Try the winner mined again with the student after its first epoch."),
    ] = True,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    teacher: Teacher = "static",
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Choose hardness and curriculum on validation rows, and write the CONFIG that won.

    Candidates differ in p, m, k, graph, repulsion, evenness and curriculum. Each round trains all
    that are left, on the same seeds and examples, and keeps the better half for more seeds. The
    winner (`b3` in the last table) is tried once more on twice the seeds, mined again with the
    student after its first epoch (`refresh`), and that is chosen if it is surely better. The
    held-out rows of CONFIG (`eval_uri`) are never looked at; without CONFIG the demo's corpus is
    used, and its validation packages. `--corpus`, `--pairs`, `--teacher` and `--store` are the
    demo's alone.

    Example: `b3 tune config.yaml --trials 8 --output tuned.yaml`
    """

    def work() -> dict[str, Any]:
        check_output(output, force=force)
        if config is not None:
            spec, judge = load_config(config), "training"
        else:
            settings = {"part": "validation", "teacher": teacher}
            spec, judge = demo_config(corpus, pairs, store, settings), "eval"
        embedded.serve()
        import yaml  # noqa: PLC0415

        from flows.tune import tune as flow  # noqa: PLC0415

        outcome = flow(spec, trials=trials, seeds=seeds, judge=judge, refresh=refresh)
        write_output(output, yaml.safe_dump(outcome["config"], sort_keys=False))
        return {**outcome, "output": str(output)}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_tuned, keeps=True)


def _show_tuned(console: Console, outcome: dict[str, Any]) -> None:
    for table in outcome["rounds"]:
        rows = [
            {"arm": row["arm"], "MRR": f"{row['mrr']:.4f}", "seeds": len(row["seeds"])}
            | _against(table["differences"], row["arm"])
            for row in sorted(table["arms"], key=lambda row: -row["mrr"])
        ]
        console.print(figures_table(rows))
    again = ", mined again after its first epoch" if outcome["refresh"] else ""
    console.print(
        f"chosen: {outcome['chosen']}{again}, written to {outcome['output']}", soft_wrap=True
    )


def _against(differences: dict[str, Any], arm: str) -> dict[str, str]:
    d = differences.get(f"{arm} - random")
    text = "" if d is None else f"{d['mean']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
    return {"MRR - random": text}


@app.command(rich_help_panel=_LOOK)
def verify(
    uri: Annotated[str, typer.Argument(help="A manifest's URI, as b3 mine prints it.")],
    *,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a manifest: every file's hash, every batch's rows, all it was made from.

    Example: `b3 verify .b3/faq/manifest/4b11d74c7540b29e4339`
    """

    def work() -> dict[str, Any]:
        from b3_core.manifest import verify as check  # noqa: PLC0415
        from b3_core.store import open_artifact  # noqa: PLC0415

        return check(open_artifact(uri))

    def show(console: Console, outcome: dict[str, Any]) -> None:
        console.print(
            f"sound: {outcome['files']} files, {outcome['batches']} batches, {outcome['rows']} rows"
        )

    run_command(work, as_json=as_json, verbose=verbose, show=show)


app.command(rich_help_panel=_KEEP)(export)


@app.command(rich_help_panel=_KEEP)
def gc(
    store: Annotated[str, typer.Argument(help="Folder or s3:// URI of artifacts.")] = ".b3",
    *,
    hours: Annotated[float, typer.Option(min=0, help="Age from which a file counts.")] = 24,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; else only list.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List, or delete, what killed runs left in a store and on this machine, and unused copies.

    Finished artifacts are never touched.

    Example: `b3 gc .b3 --hours 1 --delete`
    """

    def work() -> dict[str, Any]:
        from b3_core import copies  # noqa: PLC0415
        from b3_core.errors import InputError  # noqa: PLC0415
        from b3_core.garbage import find_orphans, remove  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415

        artifacts = ArtifactStore(store)
        if not artifacts.exists:
            raise InputError(
                f"there is no store at {store}",
                expected="a folder or s3:// URI of artifacts, as store.root of CONFIG",
                remedy="correct the path",
            )
        orphans = find_orphans(artifacts, older_than=3600 * hours)
        size_of = dict(copies.unused(older_than=3600 * hours))
        cached = list(size_of)
        drafts = copies.left_behind(older_than=3600 * hours)
        if delete:
            remove(artifacts, orphans)
            cached = copies.collect(cached)
            for folder, _ in drafts:
                shutil.rmtree(folder, ignore_errors=True)
        return {
            "orphans": [orphan._asdict() for orphan in orphans],
            "bytes": sum(orphan.size for orphan in orphans),
            "copies": list(map(str, cached)),
            "copies_bytes": sum(size_of[copy] for copy in cached),
            "drafts": [str(folder) for folder, _ in drafts],
            "drafts_bytes": sum(size for _, size in drafts),
            "deleted": delete,
        }

    def show(console: Console, outcome: dict[str, Any]) -> None:
        for orphan in outcome["orphans"]:
            console.print(f"{orphan['path']}: {orphan['why']}", highlight=False, soft_wrap=True)
        done = "deleted" if delete else "found; --delete removes them"
        console.print(
            f"{len(outcome['orphans'])} orphans, {outcome['bytes']:,} bytes, "
            f"{len(outcome['copies'])} copies on this machine, "
            f"{outcome['copies_bytes']:,} bytes, {len(outcome['drafts'])} unfinished drafts, "
            f"{outcome['drafts_bytes']:,} bytes, {done}",
            highlight=False,
            soft_wrap=True,
        )

    run_command(work, as_json=as_json, verbose=verbose, show=show)


@app.command(rich_help_panel=_LOOK)
def diff(
    before: Annotated[str, typer.Argument(help="A manifest's URI.")],
    after: Annotated[str, typer.Argument(help="Another's, of any store.")],
    *,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compare two manifests: inputs, settings, rows, who meets whom, and how hard it is.

    Example: `b3 diff URI-BEFORE URI-AFTER`
    """

    def work() -> dict[str, Any]:
        from b3_core.diff import diff as compare  # noqa: PLC0415
        from b3_core.store import open_artifact  # noqa: PLC0415

        return compare(open_artifact(before), open_artifact(after))

    run_command(work, as_json=as_json, verbose=verbose, show=_show_diff)


def _show_diff(console: Console, outcome: dict[str, Any]) -> None:
    console.print(figures_table(change_rows(outcome)))
    for name, data in outcome["datasets"].items():
        if "only_in" in data:
            console.print(f"{name}: only in the manifest {data['only_in']}", highlight=False)
            continue
        rows, moved = data["rows"], data["communities"]
        console.print(
            f"{name}: {rows['kept']:,} rows in both, {rows['added']:,} added, {rows['removed']:,} "
            f"removed; of the partners in a community {moved['partners_kept']:.1%} kept, "
            f"variation of information {moved['variation_of_information']:.3g} bits",
            highlight=False,
            soft_wrap=True,
        )


bench.app.command("plan")(planning.check)
app.add_typer(bench.app, rich_help_panel=_MEASURE)


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 failed, 2 bad input."""
    try:
        app(prog_name="b3")
    finally:
        # All is said: Ctrl-C while threads end just ends them, without a traceback of whichever
        # was waited for.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_flow(name: str, config: Path, *, as_json: bool, verbose: bool) -> None:
    run_command(
        lambda: run_flow(name, load_config(config)), as_json=as_json, verbose=verbose, keeps=True
    )
