"""``b3 plan``: what a CONFIG will take, before it runs; ``b3 bench plan``: whether it did."""

import tempfile
from typing import Annotated, Any

import typer
from rich.console import Console

from b3_core.config import load_config
from flows.running import (
    AsJson,
    ConfigFile,
    Corpus,
    Pairs,
    Teacher,
    Verbose,
    demo_config,
    plan_after,
    run_command,
    run_flow,
)
from flows.terminal import duration, figures_table

Prices = Annotated[
    list[str],
    typer.Option(
        "--price",
        help="cpu-hour=0.05, gpu-hour=2.5 or machine-hour=1.2; repeatable.",
        metavar="P=N",
    ),
]
Seconds = Annotated[
    float, typer.Option(min=0.5, help="Of work that each probe times; more is more exact.")
]


def plan(
    config: ConfigFile,
    *,
    price: Prices = [],  # noqa: B006
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of the machine meant.")] = None,
    memory_gb: Annotated[float | None, typer.Option(min=0.1, help="Its memory.")] = None,
    disk_gb: Annotated[float | None, typer.Option(min=0, help="Its free disk.")] = None,
    gpus: Annotated[
        int,
        typer.Option(
            min=0, help="Its GPUs, for prices and workers; this machine's, if CONFIG reserves any."
        ),
    ] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Teachers at once, instead of compute.workers.")
    ] = None,
    probe_seconds: Seconds = 8,
    records: Annotated[bool, typer.Option(help="Use records of the store as timings.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if something does not fit.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Predict time, memory, disk and money of every stage, and say what would not fit.

    Rates are measured here, by the stages themselves on a sample of CONFIG's data, or taken from
    the store's records. What the store holds costs nothing. Nothing is written into the store.

    Example: `b3 plan config.yaml --price cpu-hour=0.05 --memory-gb 16`
    """

    def work() -> dict[str, Any]:
        from b3_core.forecast.machine import Machine, read_prices  # noqa: PLC0415
        from b3_core.forecast.whole import Settings, forecast  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        prices = read_prices(price)
        spec = load_config(config)
        if workers is not None:
            compute = spec.compute.model_copy(update={"workers": workers})
            spec = spec.model_copy(update={"compute": compute})
        here = Machine.here(spec.store.root)
        machine = Machine(
            cpus=cpus or here.cpus,
            memory_gb=memory_gb or here.memory_gb,
            disk_gb=here.disk_gb if disk_gb is None else disk_gb,
            gpus=gpus,
            prices=prices,
        )
        with reporting.step("probes") as progress:
            made = forecast(
                spec, Settings(machine, seconds=probe_seconds, records=records), progress
            )
        problems.extend(made.problems)
        return made.to_json()

    problems: list[str] = []
    run_command(work, as_json=as_json, verbose=verbose, show=_show_plan, detail=True)
    if strict and problems:
        raise typer.Exit(1)


def check(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    teacher: Teacher = "static",
    arms: Annotated[list[str], typer.Option("--arm", help="Arms; repeatable.")] = ["random", "b3"],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 1,
    probe_seconds: Seconds = 8,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Predict a run of the demo's corpus, run it in a store of its own, and compare each stage.

    Reading the corpus is in neither. On a machine that does something else meanwhile, the two
    differ by what that takes.

    Example: `b3 bench plan --pairs 20000 --json`
    """

    def work() -> dict[str, Any]:
        import time  # noqa: PLC0415

        from b3_core.bench.machine import machine  # noqa: PLC0415
        from b3_core.bench.plan import compared  # noqa: PLC0415
        from b3_core.forecast.machine import Machine  # noqa: PLC0415
        from b3_core.forecast.whole import Settings, forecast  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix="b3-check-") as root:
            settings = {
                "part": "validation",
                "teacher": teacher,
                "arms": arms,
                "seeds": list(range(seeds)),
            }
            spec = demo_config(corpus, pairs, root, settings)
            began = time.perf_counter()
            with reporting.step("probes") as progress:
                made = forecast(spec, Settings(Machine.here(root), seconds=probe_seconds), progress)
            probed = time.perf_counter() - began
            began = time.perf_counter()
            run_flow("pipeline", spec)
            took = time.perf_counter() - began
            rows = compared(made, plan_after(spec), ArtifactStore(root))
        return {
            "rows": rows,
            "total": {
                "predicted": round(made.seconds, 1),
                "real": round(took, 1),
                "ratio": round(made.seconds / took, 2),
                "probes": round(probed, 1),
            },
            "pairs": pairs,
            "machine": machine(),
        }

    run_command(work, as_json=as_json, verbose=verbose, show=_show_check)


def _show_plan(console: Console, outcome: dict[str, Any]) -> None:
    priced = outcome["total"]["money"] is not None
    rows = []
    for stage in outcome["stages"]:
        left = stage["artifacts"] - stage["done"]
        rows.append(
            {
                "stage": stage["stage"],
                "to make": f"{left} of {stage['artifacts']}" if left else "done",
                "time": duration(stage["seconds"]) if left else "",
                "memory": f"{stage['memory_gb']:.1f} GB" if left else "",
                "disk": _bytes(stage["disk_gb"]) if left else "",
                **({"money": f"{stage['money']:.2f}" if left else ""} if priced else {}),
                "by": stage["basis"] if left else "",
                "": "!" if stage["problem"] else "",
            }
        )
    total = outcome["total"]
    rows.append(
        {
            "stage": "all",
            "to make": "",
            "time": duration(total["seconds"]),
            "memory": f"{total['memory_gb']:.1f} GB",
            "disk": _bytes(total["disk_gb"]),
            **({"money": f"{total['money']:.2f}"} if priced else {}),
            "by": "",
            "": "",
        }
    )
    console.print(figures_table(rows))
    machine = outcome["machine"]
    disk = "" if machine["disk_gb"] is None else f", {machine['disk_gb']:.0f} GB of disk free"
    lines = [
        f"for {machine['cpus']} cores, {machine['memory_gb']:.1f} GB of memory{disk}",
        *(f"assumed: {each}" for each in outcome["assumptions"]),
        *(outcome["problems"] or ["everything fits"]),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _show_check(console: Console, outcome: dict[str, Any]) -> None:
    console.print(figures_table(outcome["rows"]))
    console.print(figures_table([{"run": "all", **outcome["total"]}]))
    machine = outcome["machine"]
    console.print(f"{machine['cpus']} CPUs, {machine['cpu']}", highlight=False)


def _bytes(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"
