"""``b3 bench``: what this project does, side by side with what others do."""

from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.running import AsJson, Pairs, Store, Teacher, Verbose, demo_config, run_command, run_flow
from flows.terminal import figures_table

app = typer.Typer(
    name="bench",
    help="Side-by-side measurements; each says what machine it ran on.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

K = Annotated[int, typer.Option("--k", min=2, help="Rows in a community.")]


@app.command()
def partition(
    *,
    pairs: Pairs = 60_000,
    teacher: Teacher = "static",
    k: K = 32,
    p: Annotated[int, typer.Option("--p", min=0, help="First ranks dropped.")] = 30,
    m: Annotated[int, typer.Option("--m", min=1, help="Ranks kept after them.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every method.")] = 1,
    method: Annotated[list[str], typer.Option(help="Only these; repeatable.")] = [],  # noqa: B006
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Every partitioner on the same ranks of the demo's corpus: edges kept, seconds, memory."""

    def work() -> dict[str, Any]:
        from b3_core.bench.partition import bench_partition  # noqa: PLC0415
        from b3_core.plan import Plan  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415
        from flows import outcome  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        # The random arm mines nothing, but its manifest wants the ranks: what is timed here.
        settings = {
            "part": "validation",
            "teacher": teacher,
            "arms": ["random"],
            "mining": {"k": k, "p": p, "m": m},
            "batches": {"batch_size": max(64, k)},
        }
        spec = demo_config(pairs, store, settings)
        run_flow("mine", spec)
        artifacts = ArtifactStore(spec.store.root)
        plan = Plan.of(spec, outcome.refs(spec, artifacts), artifacts)
        with reporting.step("partition") as progress:
            return bench_partition(
                pairs=artifacts.get(plan.ranks[0].ref.address).uri,
                ranks=artifacts.get(plan.ranks[0].address).uri,
                vectors=artifacts.get(plan.vectors[0].address).uri,
                mining=spec.mining,
                seeds=range(seeds),
                only=method,
                progress=progress,
            )

    run_command(work, as_json=as_json, verbose=verbose, show=_show)


@app.command()
def neighbours(
    *,
    rows: Annotated[int, typer.Option(min=1000, help="Queries, and as many positives.")] = 50_000,
    dim: Annotated[int, typer.Option(min=8, help="Width of the vectors.")] = 384,
    k: Annotated[int, typer.Option("--k", min=1, help="Ranks wanted.")] = 130,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every method.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of every method.")] = 3,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Our exact ranking beside faiss and sentence-transformers: seconds, exactness, memory."""

    def work() -> dict[str, Any]:
        from b3_core.bench.neighbours import bench_neighbours  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        with reporting.step("neighbours") as progress:
            return bench_neighbours(
                rows=rows, dim=dim, k=k, threads=threads, repeats=repeats, progress=progress
            )

    run_command(work, as_json=as_json, verbose=verbose, show=partial(_show, table="results"))


def _show(console: Console, outcome: dict[str, Any], *, table: str = "rows") -> None:
    console.print(figures_table(outcome[table]))
    machine = outcome["machine"]
    console.print(f"{machine['cpus']} CPUs, {machine['cpu']}", highlight=False)
