"""The command line ``b3``.

Prefect reads its settings when it is imported, so nothing here imports a flow before
``embedded.prepare`` has run: commands import what they need.
"""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from b3_core.config import PipelineSpec, load_config
from b3_core.errors import B3Error
from flows import embedded

app = typer.Typer(
    name="b3",
    help="Mine training batches full of in-batch negatives for embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see README, 'Your own data'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show logs and tracebacks.")]


@app.command()
def demo(
    *,
    pairs: Annotated[int, typer.Option(min=128, help="Training pairs at most.")] = 20_000,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows in a batch.")] = 64,
    teacher: Annotated[str, typer.Option(help="static, minilm, or a model folder.")] = "static",
    part: Annotated[str, typer.Option(help="Held-out part: test or validation.")] = "test",
    store: Annotated[str, typer.Option(help="Folder or s3:// URI of artifacts.")] = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run the whole pipeline on real pairs read from the Python code installed beside it.

    Docstrings are queries, function bodies their positives; whole packages are held out. Three
    arms see the same examples from the same initial weights: batches drawn at **random**, by the
    **paper**'s recipe, and by **b3**.
    """

    def work() -> dict[str, Any]:
        from b3_core import corpus  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415
        from flows.demo import DemoCorpus, demo_spec  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        artifacts = ArtifactStore(store)
        artifacts.check_writable()
        made = DemoCorpus(pairs, corpus.corpus_fingerprint())
        if artifacts.find(made.address) is None:
            with reporting.step("corpus") as progress:
                made.run(artifacts, progress)
        spec = demo_spec(
            artifacts,
            made,
            {
                "part": part,
                "teacher": teacher,
                "arms": ["random", "paper", "b3"],
                "seeds": list(range(seeds)),
                "batches": {"batch_size": batch_size},
            },
        )
        return _flow("pipeline", spec)

    _run(work, as_json=as_json, verbose=verbose)


@app.command()
def run(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Mine, train and evaluate as CONFIG says."""
    _run_flow("pipeline", config, as_json=as_json, verbose=verbose)


@app.command()
def mine(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Mine batches and publish a manifest for every arm and seed of CONFIG."""
    _run_flow("mine", config, as_json=as_json, verbose=verbose)


@app.command()
def train(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Train a student on every manifest of CONFIG, mining first what is not mined."""
    _run_flow("train", config, as_json=as_json, verbose=verbose)


@app.command()
def evaluate(config: ConfigFile, *, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Evaluate the students of CONFIG, training first what is not trained."""
    _run_flow("evaluate", config, as_json=as_json, verbose=verbose)


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="A manifest's URI, as b3 mine prints it.")],
    *,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check a manifest: every file's hash, every batch's rows, all it was made from."""

    def work() -> dict[str, Any]:
        from b3_core.manifest import verify as check  # noqa: PLC0415
        from b3_core.store import open_artifact  # noqa: PLC0415

        return check(open_artifact(uri))

    def show(console: Console, outcome: dict[str, Any]) -> None:
        console.print(
            f"sound: {outcome['files']} files, {outcome['batches']} batches, {outcome['rows']} rows"
        )

    _run(work, as_json=as_json, verbose=verbose, show=show)


def main() -> None:
    """Run the command line and exit with its code: 0 done, 1 failed, 2 bad input."""
    app()


def _run_flow(name: str, config: Path, *, as_json: bool, verbose: bool) -> None:
    _run(lambda: _flow(name, load_config(config)), as_json=as_json, verbose=verbose)


def _flow(name: str, spec: PipelineSpec) -> dict[str, Any]:
    """Run the flow ``name`` of module ``flows.<name>``, unless all of its work is done."""
    from flows.outcome import if_done  # noqa: PLC0415

    outcome = if_done(name, spec)
    up_to_date = outcome is not None
    if outcome is None:
        embedded.serve()
        outcome = getattr(importlib.import_module(f"flows.{name}"), name)(spec)
    return {"spec": spec, "up_to_date": up_to_date, **outcome}


def _run(
    work: Callable[[], dict[str, Any]],
    *,
    as_json: bool,
    verbose: bool,
    show: Callable[[Console, dict[str, Any]], None] | None = None,
) -> None:
    """Do a command's work with bars on stderr, then print its outcome or one line of error."""
    embedded.prepare(verbose=verbose)
    from flows.terminal import TerminalReporter  # noqa: PLC0415
    from tasks import reporting  # noqa: PLC0415

    console = Console(stderr=True)
    reporter = TerminalReporter(console)
    reporting.use(reporter)
    try:
        with _stdout_kept_clean() as stdout:
            with reporter.live():
                outcome = work()
            spec = outcome.pop("spec", None)
            if as_json:
                outcome["seconds"] = dict(reporting.seconds)
                print(json.dumps(_machine(outcome, spec)), file=stdout)
            else:
                (show or _show)(Console(file=stdout), outcome)
        if outcome.get("up_to_date"):
            console.print("up to date")
    except B3Error as error:
        if verbose:
            console.print_exception()
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues where it stopped", 130)
    except Exception as error:
        if verbose:
            raise
        _fail(f"{_first_line(error)}; run again with -v for the traceback", 1)


def _machine(outcome: dict[str, Any], spec: PipelineSpec | None) -> dict[str, Any]:
    """Add what a script asks for first: the b3 manifest, and b3 against random."""
    added: dict[str, Any] = {}
    if spec is not None and "manifests" in outcome and "b3" in spec.arms:
        added["manifest"] = outcome["manifests"][spec.arms.index("b3") * len(spec.seeds)]
    difference = outcome.get("differences", {}).get("b3 - random")
    if difference is not None:
        added["difference"] = {"mrr": difference}
    return {**outcome, **added}


def _show(console: Console, outcome: dict[str, Any]) -> None:
    from flows.terminal import arms_table, difference_lines  # noqa: PLC0415

    if "arms" in outcome:
        console.print(arms_table(outcome))
        for line in difference_lines(outcome):
            console.print(line, highlight=False)
        console.print(f"report: {outcome['report']}", highlight=False, soft_wrap=True)
    if "arms" in outcome and "manifests" in outcome:  # the whole pipeline: the ends are enough
        console.print(f"manifest: {outcome['manifests'][-1]}", highlight=False, soft_wrap=True)
        console.print(f"student: {outcome['students'][-1]}", highlight=False, soft_wrap=True)
        return
    for kind in ("manifests", "students"):
        for uri in outcome.get(kind, ()):
            console.print(f"{kind[:-1]}: {uri}", highlight=False, soft_wrap=True)


def _fail(message: object, code: int) -> None:
    print(f"b3: {message}", file=sys.stderr)
    raise SystemExit(code)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[Any]:
    """Send what libraries print to stderr, native code included; yield the real stdout."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
