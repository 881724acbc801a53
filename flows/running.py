"""What every command of ``b3`` does around its work: bars, one line of error, JSON, exit codes.

Prefect reads its settings when it is imported, so nothing here imports a flow before
``embedded.prepare`` has run.
"""

import contextlib
import functools
import importlib
import itertools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from b3_core.config import PipelineSpec
from b3_core.errors import B3Error
from flows import embedded

ConfigFile = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file; b3 init writes one. See README, 'Your own data'.",
        autocompletion=lambda incomplete: config_files(incomplete),  # noqa: PLW0108 - is below
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show logs and tracebacks.")]
Teacher = Annotated[str, typer.Option(help="static, minilm, or a model folder.")]
Store = Annotated[str, typer.Option(help="Folder or s3:// URI of artifacts.")]
Pairs = Annotated[int, typer.Option(min=128, help="Training pairs at most.")]
Corpus = Annotated[
    Literal["code", "prose", "icons", "digits", "tables"],
    typer.Option(
        help="Docstrings and code; prose that documents web services; pictures of icons and their "
        "names, or of digits and theirs; questions about tables."
    ),
]


def config_files(incomplete: str) -> list[str]:
    """Complete the path of a CONFIG: YAML files, and folders to look into."""
    folder, _, start = incomplete.rpartition("/")
    below = Path(folder + "/" if incomplete.startswith("/") or folder else ".").expanduser()
    found = []
    with contextlib.suppress(OSError):
        for each in sorted(below.iterdir()):
            if not each.name.startswith(start) or (each.name.startswith(".") and not start):
                continue
            prefix = incomplete[: len(incomplete) - len(start)]
            if each.is_dir():
                found.append(f"{prefix}{each.name}/")
            elif each.suffix in {".yaml", ".yml", ".json"}:
                found.append(prefix + each.name)
    return found


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def demo_config(corpus: str, pairs: int, store: str, settings: dict[str, Any]) -> PipelineSpec:
    """Read a corpus of the demo, unless the store has it, and return a CONFIG on it.

    Parameters
    ----------
    corpus
        One of ``b3_core.corpus.KINDS``.
    settings
        As :func:`flows.demo.demo_spec` takes them.
    """
    from b3_core.store import ArtifactStore  # noqa: PLC0415
    from flows.demo import DemoCorpus, demo_spec  # noqa: PLC0415
    from tasks import reporting  # noqa: PLC0415

    artifacts = ArtifactStore(store)
    artifacts.check_writable()
    made = DemoCorpus.of(corpus, pairs)
    if artifacts.find(made.address) is None:
        with reporting.step("corpus") as progress:
            made.run(artifacts, progress)
    return demo_spec(artifacts, made, settings)


def run_flow(name: str, spec: PipelineSpec) -> dict[str, Any]:
    """Run the flow ``name`` of module ``flows.<name>``, unless all of its work is done."""
    from flows.outcome import if_done  # noqa: PLC0415

    outcome = if_done(name, spec)
    up_to_date = outcome is not None
    if outcome is None:
        embedded.serve()
        outcome = getattr(importlib.import_module(f"flows.{name}"), name)(spec)
    return {"spec": spec, "up_to_date": up_to_date, **outcome}


def plan_after(spec: PipelineSpec) -> Any:
    """Return the :class:`b3_core.plan.Plan` of a CONFIG whose datasets a flow has just read."""
    from b3_core.plan import Plan  # noqa: PLC0415
    from b3_core.store import ArtifactStore  # noqa: PLC0415

    plan = Plan.in_store(spec, ArtifactStore(spec.store.root))
    assert plan is not None
    return plan


def run_command(
    work: Callable[[], dict[str, Any]],
    *,
    as_json: bool,
    verbose: bool,
    show: Callable[[Console, dict[str, Any]], None] | None = None,
    bars: bool = True,
    keeps: bool = False,
    detail: bool = False,
) -> None:
    """Do a command's work with bars on stderr, then print its outcome or one line of error.

    ``keeps``: what is finished when it is interrupted stays, and the same command goes on.
    ``detail``: where there are no bars, say every few seconds how far it is, as ``verbose`` does.
    """
    embedded.prepare(verbose=verbose)
    from flows.terminal import TerminalReporter  # noqa: PLC0415
    from tasks import reporting  # noqa: PLC0415

    console = Console(stderr=True)
    reporter = TerminalReporter(console, detail=verbose or detail)
    reporting.use(reporter)
    goes_on = "; the same command continues where it stopped" if keeps else ""
    try:
        with _sigterm_raised(), _interrupts_kept(), _stdout_kept_clean() as stdout:
            with reporter.live() if bars else contextlib.nullcontext():
                outcome = work()
            spec = outcome.pop("spec", None)
            if as_json:
                outcome["seconds"] = dict(reporting.seconds)
                print(json.dumps(_machine(outcome, spec)), file=stdout)
            else:
                shown = show or functools.partial(show_outcome, spec=spec)
                shown(Console(file=stdout), outcome)
        for line in outcome.get("warnings", ()):
            console.print(f"warning: {line}", highlight=False, soft_wrap=True)
        if outcome.get("up_to_date"):
            console.print("up to date")
    except B3Error as error:
        if verbose:
            console.print_exception()
        _fail(error, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail(f"interrupted{goes_on}", 130)
    except _ToldToEnd:
        _fail(f"told to end{goes_on}", 143)
    except Exception as error:
        if verbose:
            raise
        _fail(f"{_one_line(error)}; run again with -v for the traceback", 1)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Raise Ctrl-C again where Python could only print it: in a destructor or weak reference."""
    before, main = sys.unraisablehook, threading.get_ident()

    def note(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not here, where it would be ignored as well, but as soon as this has returned.
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            before(unraisable)

    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = before


class _ToldToEnd(BaseException):
    """SIGTERM came, and what was to be kept is kept."""


@contextlib.contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Raise SIGTERM as _ToldToEnd; inside a flow Prefect's own handler comes first."""

    def told(number: int, frame: FrameType | None) -> None:
        raise _ToldToEnd

    before = signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _machine(outcome: dict[str, Any], spec: PipelineSpec | None) -> dict[str, Any]:
    """Add what a script asks for first: the b3 manifest, and b3 against random."""
    added: dict[str, Any] = {}
    if spec is not None and "manifests" in outcome and "b3" in spec.arm_names:
        legs = [uri for *of, _, uri in _named(spec, outcome) if of == ["b3", spec.seeds[0]]]
        added["manifest"] = legs[0]
        if (whole := _legs_of(spec)["b3"]) > 1:  # of which a mining alone makes the first
            added |= {"manifest_legs": legs, "legs": whole}
    difference = outcome.get("differences", {}).get("b3 - random")
    if difference is not None:
        added["difference"] = {"mrr": difference}
    return {**outcome, **added}


def _named(spec: PipelineSpec, outcome: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Return arm, seed, leg and URI of every manifest, in order; the leg if the arm has several.

    Where CONFIG was only mined, those of the first leg are all there are.
    """
    legs_of = _legs_of(spec)
    runs = [
        (arm, seed, f", leg {leg} of its curriculum" if legs > 1 else "")
        for leg in range(max(legs_of.values()))
        for arm, legs in legs_of.items()
        if leg < legs
        for seed in spec.seeds
    ]
    return [(*run, uri) for run, uri in zip(runs, outcome.get("manifests", ()), strict=False)]


def _legs_of(spec: PipelineSpec) -> dict[str, int]:
    """Return into how many legs each arm's curriculum is cut by refreshes."""
    return {arm: len(spec.arm(arm)[1].legs) for arm in spec.arm_names}


def show_outcome(console: Console, outcome: dict[str, Any], spec: PipelineSpec) -> None:
    """Print what a person wants to know of a flow: the table of arms, and where things are."""
    from b3_core.results import told  # noqa: PLC0415
    from flows.terminal import arms_table  # noqa: PLC0415

    if "arms" in outcome:
        console.print(arms_table(outcome))
        for line in told(outcome):
            console.print(line, highlight=False)
        for task, table in outcome.get("tasks", {}).items():
            console.print(arms_table(table, title=task))
            for line in told(table):
                console.print(line, highlight=False)
        if "benchmarks_report" in outcome:
            where = outcome["benchmarks_report"]
            console.print(f"benchmarks: {where}", highlight=False, soft_wrap=True)
        for uri in outcome.get("pictures", {}).values():
            console.print(f"a batch: {uri}", highlight=False, soft_wrap=True)
        console.print(f"report: {outcome['report']}", highlight=False, soft_wrap=True)
    if "arms" in outcome and "manifests" in outcome:  # the whole pipeline: one arm is enough
        arm = "b3" if "b3" in spec.arm_names else spec.arm_names[-1]
        for *of, leg, uri in _named(spec, outcome):
            if of == [arm, spec.seeds[0]]:
                console.print(f"manifest of {arm}{leg}: {uri}", highlight=False, soft_wrap=True)
        uri = outcome["students"][spec.arm_names.index(arm) * len(spec.seeds)]
        console.print(f"student of {arm}: {uri}", highlight=False, soft_wrap=True)
        return
    for arm, seed, leg, uri in _named(spec, outcome):
        found = f"manifest of {arm}, seed {seed}{leg}: {uri}"
        console.print(found, highlight=False, soft_wrap=True)
    if "manifests" in outcome and "students" not in outcome and max(_legs_of(spec).values()) > 1:
        console.print(
            "Later legs are mined with the student that was trained so far: b3 train does both.",
            soft_wrap=True,
        )
    runs = itertools.product(spec.arm_names, spec.seeds)
    for (arm, seed), uri in zip(runs, outcome.get("students", ()), strict=False):
        console.print(f"student of {arm}, seed {seed}: {uri}", highlight=False, soft_wrap=True)


def _fail(message: object, code: int) -> None:
    print(f"b3: {message}", file=sys.stderr)
    raise SystemExit(code)


def _one_line(error: BaseException) -> str:
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    # Ray's messages hold the traceback of another process: what went wrong is its last line.
    said = lines[-1] if type(error).__module__.startswith("ray.") else lines[0]
    return f"{type(error).__name__}: {said.strip()}"


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
