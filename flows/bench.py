"""``b3 bench``: what this project does, side by side with what others do."""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from b3_core.config import MiningSpec
from flows import embedded
from flows.output import check_output
from flows.running import (
    AsJson,
    Corpus,
    Pairs,
    Store,
    Teacher,
    Verbose,
    demo_config,
    plan_after,
    run_command,
    run_flow,
)
from flows.terminal import figures_table

app = typer.Typer(
    name="bench",
    help="Side-by-side measurements; each says what machine it ran on.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

K = Annotated[int, typer.Option("--k", min=2, help="Rows in a community.")]
Precision = Literal["fp32", "bf16"]


@app.command()
def partition(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 60_000,
    teacher: Teacher = "static",
    k: K = 32,
    p: Annotated[int, typer.Option("--p", min=0, help="First ranks dropped.")] = 30,
    m: Annotated[int, typer.Option("--m", min=1, help="Ranks kept after them.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every method.")] = 1,
    method: Annotated[list[str], typer.Option(help="Only these; repeatable.")] = [],  # noqa: B006
    plot: Annotated[Path | None, typer.Option(help="Draw the frontier to this file.")] = None,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Every partitioner on the same ranks of the demo's corpus: edges kept, seconds, memory.

    Example: `b3 bench partition --pairs 20000 --method leiden`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.partition import bench_partition, draw_frontier  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        # The random arm mines nothing, but its manifest wants the ranks: what is timed here.
        settings = {
            "part": "validation",
            "teacher": teacher,
            "arms": ["random"],
            "mining": {"k": k, "p": p, "m": m},
            "batches": {"batch_size": max(64, k)},
        }
        if plot is not None:
            check_output(plot, force=True)
        spec = demo_config(corpus, pairs, store, settings)
        run_flow("mine", spec)
        artifacts = ArtifactStore(spec.store.root)
        (leg,) = plan_after(spec).legs
        with reporting.step("partition") as progress:
            found = bench_partition(
                pairs=artifacts.get(leg.ranks[0].ref.address).uri,
                ranks=artifacts.get(leg.ranks[0].address).uri,
                vectors=artifacts.get(leg.vectors[0].address).uri,
                mining=spec.mining,
                seeds=range(seeds),
                only=method,
                progress=progress,
            )
        if plot is not None:
            draw_frontier(found["rows"], plot)
        return found

    run_command(work, as_json=as_json, verbose=verbose, show=_show_partition)


@app.command()
def batch_size(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    teacher: Teacher = "static",
    size: Annotated[
        list[int], typer.Option(min=2, help="Batch sizes; repeatable.", show_default=True)
    ] = [64, 128, 256, 512, 1024],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every arm.")] = 3,
    part: Annotated[str, typer.Option(help="Held-out part: test or validation.")] = "validation",
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Which random batch a mined batch is worth: the demo's arms at several batch sizes.

    All see the same examples; the learning rate grows with the root of the batch size.

    Example: `b3 bench batch-size --size 64 --size 256`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.machine import machine  # noqa: PLC0415
        from flows.demo import compared  # noqa: PLC0415

        settings = compared(corpus)
        settings |= {"part": part, "teacher": teacher, "seeds": list(range(seeds))}
        spec = demo_config(corpus, pairs, store, settings)
        embedded.serve()
        from flows.batch_size import batch_size as flow  # noqa: PLC0415

        return {**flow(spec, sizes=tuple(size)), "part": part, "machine": machine()}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_batch_sizes, keeps=True)


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
    """Our exact ranking beside faiss and sentence-transformers: seconds, exactness, memory.

    Example: `b3 bench neighbours --rows 20000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.neighbours import bench_neighbours  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        with reporting.step("neighbours") as progress:
            return bench_neighbours(
                rows=rows, dim=dim, k=k, threads=threads, repeats=repeats, progress=progress
            )

    run_command(work, as_json=as_json, verbose=verbose, show=partial(_show, table="results"))


@app.command()
def cost(
    *,
    corpus: Corpus = "code",
    teacher: Teacher = "static",
    rows: Annotated[list[int], typer.Option(min=500, help="Training pairs; repeatable.")] = [  # noqa: B006
        10_000,
        20_000,
        40_000,
        80_000,
    ],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Seconds and memory of every stage as data grows, in stores of their own, and the exponents.

    A corpus that has fewer pairs than asked for gives those it has.

    Example: `b3 bench cost --rows 5000 --rows 20000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.cost import cost_rows, exponents  # noqa: PLC0415
        from b3_core.bench.machine import machine  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415

        def run(pairs: int) -> list[dict[str, Any]]:
            with tempfile.TemporaryDirectory(prefix="b3-cost-") as root:
                settings = {"part": "validation", "teacher": teacher, "arms": ["b3"]}
                spec = demo_config(corpus, pairs, root, settings)
                run_flow("pipeline", spec)
                return cost_rows(plan_after(spec), ArtifactStore(root))

        run(min(rows))  # untimed: imports and compilation
        found = [row for pairs in rows for row in run(pairs)]
        return {"rows": found, "exponents": exponents(found), "machine": machine()}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_cost)


@app.command()
def scale(
    *,
    rows: Annotated[list[int], typer.Option(min=1000, help="Drawn rows; repeatable.")] = [  # noqa: B006
        100_000,
        300_000,
        1_000_000,
    ],
    whole_up_to: Annotated[
        int, typer.Option(min=0, help="Sizes up to this are mined in one piece too.")
    ] = 100_000,
    exact_up_to: Annotated[
        int,
        typer.Option(
            min=0,
            help="Sizes up to this are mined by exact ranks too: in cells, but looking into every "
            "list. It takes as long as one piece, goes on where it was ended, and fits.",
        ),
    ] = 0,
    cell_rows: Annotated[int, typer.Option(min=100, help="Rows of a cell.")] = 32_768,
    k: K = 32,
    pairs: Annotated[
        int, typer.Option(min=1000, help="Real pairs that rows are drawn like.")
    ] = 20_000,
    teacher: Teacher = "static",
    at: Annotated[int, typer.Option(help="Rows to extrapolate to.")] = 100_000_000,
    workers: Annotated[list[int], typer.Option(help="Cores there; repeatable.")] = [64, 1024],  # noqa: B006
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Mining in cells, of rows drawn like the demo's code: seconds, memory, and what cells lose.

    Partners are counted by exact ranks, whichever ranks were mined with: of all rows where they are
    mined by exact ranks too, else of 2,000 sampled ones.

    Example: `b3 bench scale --rows 100000 --whole-up-to 100000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.machine import machine  # noqa: PLC0415
        from b3_core.bench.scale import seconds_a_list, summary  # noqa: PLC0415

        settings = {
            "part": "validation",
            "teacher": teacher,
            "arms": ["random"],
            "mining": {"k": k, "cell_rows": cell_rows},
        }
        spec = demo_config("code", pairs, store, settings)
        run_flow("mine", spec.model_copy(update={"mining": MiningSpec(k=k)}))
        (leg,) = plan_after(spec).legs
        from flows.scale import scale as flow  # noqa: PLC0415

        found = flow(
            spec, leg.vectors[0].address, rows, exact_up_to=exact_up_to, whole_up_to=whole_up_to
        )
        list_seconds = seconds_a_list(found[0]["width"])
        told = summary(found, spec.mining, at=at, workers=workers, list_seconds=list_seconds)
        return {"rows": found, **told, "list_seconds": list_seconds, "machine": machine()}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_scale, keeps=True)


@app.command()
def remine(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 60_000,
    teacher: Teacher = "static",
    share: Annotated[float, typer.Option(min=0.0, max=0.2, help="Of the rows that differ.")] = 0.01,
    scattered: Annotated[bool, typer.Option(help="All over the data, not side by side.")] = False,
    seed: Annotated[int, typer.Option(help="Which rows differ.")] = 0,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Mine, change some rows, mine again: seconds of each stage, and what became of communities.

    Of the rows that differ a third each are gone, edited and new: rows of the validation part.

    Example: `b3 bench remine --pairs 20000 --share 0.05`
    """

    def work() -> dict[str, Any]:
        import numpy as np  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        from b3_core.bench import remine as bench  # noqa: PLC0415
        from b3_core.bench.machine import machine  # noqa: PLC0415
        from b3_core.plan import Leg  # noqa: PLC0415
        from b3_core.store import ArtifactStore  # noqa: PLC0415

        spec = demo_config(
            corpus, pairs, store, {"part": "validation", "teacher": teacher, "arms": ["b3"]}
        )
        artifacts = ArtifactStore(spec.store.root)
        others = pq.read_table(spec.datasets[0].eval_uri)

        def mine(file: Path, table: Any, *, incremental: bool) -> tuple[Leg, float]:
            pq.write_table(table, file)
            dataset = spec.datasets[0].model_copy(update={"uri": str(file)})
            mined = spec.model_copy(update={"datasets": (dataset,), "incremental": incremental})
            started = time.perf_counter()
            run_flow("mine", mined)
            took = time.perf_counter() - started
            return plan_after(mined).legs[0], took

        with tempfile.TemporaryDirectory(prefix="b3-remine-") as folder:
            was = pq.read_table(spec.datasets[0].uri)
            now = bench.changed(
                was,
                others,
                share=share,
                where="scattered" if scattered else "together",
                rng=np.random.default_rng(seed),
            )
            before, _ = mine(Path(folder, "before.parquet"), was, incremental=False)
            after, took = mine(Path(folder, "after.parquet"), now, incremental=True)
        found = bench.compare(before, after, artifacts)
        return {**found, "command_seconds": round(took, 2), "machine": machine()}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_remine)


@app.command()
def manifest(
    *,
    rows: Annotated[int, typer.Option(min=1000, help="Rows of a synthetic dataset.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option(min=32, help="Rows of a batch.")] = 64,
    batch: Annotated[int, typer.Option(min=0, help="The batch that is read.")] = 12_345,
    repeats: Annotated[int, typer.Option(min=1, help="Times it is read.")] = 5,
    mds_python: Annotated[
        str | None, typer.Option(help="Interpreter with mosaicml-streaming, for its row.")
    ] = None,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a manifest, and the same as datasets' and MDS files: bytes, seconds, one batch read.

    Over S3 with `--store s3://...` and `AWS_ENDPOINT_URL`.

    Example: `b3 bench manifest --rows 100000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.manifest import bench_manifest  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        with reporting.step("manifest") as progress:
            return bench_manifest(
                rows=rows,
                batch_size=batch_size,
                batch=batch,
                store=store,
                mds_python=mds_python,
                repeats=repeats,
                progress=progress,
            )

    run_command(work, as_json=as_json, verbose=verbose, show=partial(_show, table="results"))


@app.command()
def train(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    model: Annotated[
        list[str], typer.Option(help="minilm, tokens, or a model folder; repeatable.")
    ] = ["minilm", "tokens"],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of 64 pairs, transformers.")] = 20,
    static_steps: Annotated[
        int, typer.Option(min=1, help="Timed steps of 64 pairs, static students.")
    ] = 250,
    max_length: Annotated[int, typer.Option(min=4, help="Tokens of a text there.")] = 32,
    large: Annotated[
        int, typer.Option(min=0, help="Pairs of a large batch, plain and cached; 0: none.")
    ] = 1024,
    large_steps: Annotated[int, typer.Option(min=1, help="Timed steps of large batches.")] = 2,
    large_max_length: Annotated[int, typer.Option(min=4, help="Tokens of a text there.")] = 8,
    precision: Annotated[Precision, typer.Option(help="Arithmetic of transformers.")] = "fp32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every run.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of every case and method.")] = 3,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Our training job beside sentence-transformers' trainer: steps a second, memory, waiting.

    On the same batches of the demo's corpus, each run in a process of its own, in turns.

    Example: `b3 bench train --model tokens --repeats 1`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.train import bench_train, cases  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        artifact = _demo_pairs(corpus, pairs, store)
        measured = cases(
            model,
            steps=steps,
            static_steps=static_steps,
            max_length=max_length,
            large=large,
            large_steps=large_steps,
            large_max_length=large_max_length,
            precision=precision,
        )
        with reporting.step("train") as progress:
            return bench_train(
                artifact.uri,
                measured,
                threads=threads,
                repeats=repeats,
                progress=progress,
            )

    run_command(work, as_json=as_json, verbose=verbose, show=_show_train)


@app.command()
def embed(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    model: Annotated[str, typer.Option(help="minilm, or a model folder.")] = "minilm",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the model.")] = "fp32",
    texts: Annotated[int, typer.Option(min=600, help="Positives that are embedded.")] = 2_000,
    max_length: Annotated[int | None, typer.Option(min=4, help="Tokens of a text.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of every method.")] = 3,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Our teacher beside sentence-transformers' `encode`: texts a second, equal vectors.

    Example: `b3 bench embed --texts 1000 --repeats 1`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.embed import bench_embed  # noqa: PLC0415
        from b3_core.config import TeacherSpec  # noqa: PLC0415
        from b3_core.pairs import PairTable  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        positives = PairTable.load(_demo_pairs(corpus, pairs, store), "train").positives
        with reporting.step("embed") as progress:
            return bench_embed(
                positives[:texts].to_pylist(),
                TeacherSpec(model=model, precision=precision, max_length=max_length),
                threads=threads,
                repeats=repeats,
                progress=progress,
            )

    run_command(work, as_json=as_json, verbose=verbose, show=partial(_show, table="results"))


@app.command()
def overhead(
    *,
    corpus: Corpus = "code",
    pairs: Pairs = 20_000,
    repeats: Annotated[int, typer.Option(min=1, help="Times that both are run.")] = 1,
    shards: Annotated[int, typer.Option(min=1, help="Shards that only wait.")] = 1_000,
    milliseconds: Annotated[float, typer.Option(min=0, help="How long each waits.")] = 10,
    store: Store = ".b3",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Time the demo as flows, and its stages called by a plain script; then idle shards.

    Each run has a process and an empty store of its own; reading the corpus is in neither.

    Example: `b3 bench overhead --pairs 2000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.machine import machine  # noqa: PLC0415
        from b3_core.config import ComputeSpec  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        settings = {"part": "validation", "arms": ["random", "paper", "b3"], "seeds": [0, 1, 2]}
        spec = demo_config(corpus, pairs, store, settings)
        rows = []
        for repeat in range(repeats):
            for way, command in _WAYS.items():
                with reporting.step(f"{way} {repeat}"):
                    rows.append({"way": way, "repeat": repeat, **_timed(command, spec)})
        embedded.serve()
        from flows.overhead import overhead as flow  # noqa: PLC0415

        waited = flow(shards, milliseconds / 1000, ComputeSpec())
        waited["outside_seconds"] = round(waited["seconds"] - waited["work_seconds"], 2)
        return {"rows": rows, "idle_shards": {"shards": shards, **waited}, "machine": machine()}

    run_command(work, as_json=as_json, verbose=verbose, show=_show_overhead)


@app.command()
def evaluate(
    *,
    queries: Annotated[int, typer.Option(min=1, help="Queries.")] = 5_000,
    corpus: Annotated[
        int, typer.Option(min=1, help="Entries that each is ranked against.")
    ] = 100_000,
    dim: Annotated[int, typer.Option(min=8, help="Width of the vectors.")] = 512,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every method.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of every method.")] = 3,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Scoring of held-out queries beside mteb's and sentence-transformers' own evaluators.

    Example: `b3 bench evaluate --queries 1000`
    """

    def work() -> dict[str, Any]:
        from b3_core.bench.evaluate import bench_evaluate  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        with reporting.step("evaluate") as progress:
            found = bench_evaluate(
                queries=queries,
                corpus=corpus,
                dim=dim,
                threads=threads,
                repeats=repeats,
                progress=progress,
            )
        return {"rows": found.pop("results"), **found}

    run_command(work, as_json=as_json, verbose=verbose, show=_show)


#: Plain first: whoever is second finds the files of the libraries in memory.
_WAYS = {"plain script": ["b3_core.bench.overhead"], "flows": ["flows", "run", "--json"]}


def _demo_pairs(corpus: str, pairs: int, store: str) -> Any:
    """Return the artifact of a demo corpus's pairs, made if it is not there."""
    from b3_core.dataset_stage import Pairs as PairsStage  # noqa: PLC0415
    from b3_core.store import ArtifactStore  # noqa: PLC0415

    spec = demo_config(corpus, pairs, store, {"part": "validation", "arms": ["random"]})
    artifacts = ArtifactStore(spec.store.root)
    made = PairsStage.of(spec.datasets[0], spec.evaluate)
    made.run(artifacts)
    return artifacts.get(made.address)


def _timed(command: list[str], spec: Any) -> dict[str, Any]:
    """Run a CONFIG in an empty store, in a process of its own: its seconds, and those of steps."""
    with tempfile.TemporaryDirectory(prefix="b3-overhead-") as folder:
        own = spec.model_copy(update={"store": spec.store.model_copy(update={"root": folder})})
        config = Path(folder, "config.json")
        config.write_text(own.model_dump_json(exclude_unset=True), encoding="utf-8")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", *command, str(config)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        took = round(time.monotonic() - began, 2)
        told = json.loads(done.stdout)
        return {"seconds": took, "steps": told.get("seconds", told)}


def _show_overhead(console: Console, outcome: dict[str, Any]) -> None:
    for row in outcome["rows"]:
        console.print(f"{row['way']}: {row['seconds']} s, of which {row['steps']}", soft_wrap=True)
    console.print(figures_table([outcome["idle_shards"]]))


def _show_train(console: Console, outcome: dict[str, Any]) -> None:
    """Print the ratios and the rows; sentence-transformers is s-t, for a terminal is narrow."""
    compared = [
        {
            "seconds a step": kind.replace("_", " ").replace("sentence transformers", "s-t"),
            "of": case.replace("sentence-transformers", "s-t"),
            **figures,
        }
        for kind, cases in outcome["ratios"].items()
        for case, figures in cases.items()
    ]
    rows = [
        {
            "method": row["method"].replace("sentence-transformers", "s-t"),
            "of": f"{Path(row['model']).name}, {row['batch_size']}, {row['loss']}",
            "steps/s": row["steps_per_second"],
            "low": row["low"],
            "high": row["high"],
            "peak MB": row["peak_mb"],
            **({"GPU MB": row["gpu_peak_mb"]} if "gpu_peak_mb" in row else {}),
            "waits": row["data_wait_share"],
            "tokenises": row["tokenise_share"],
        }
        for row in outcome["rows"]
    ]
    console.print(figures_table(compared))
    _show(console, {**outcome, "rows": rows})


def _show_remine(console: Console, outcome: dict[str, Any]) -> None:
    figures = {k: v for k, v in outcome.items() if k not in {"stages", "machine"}}
    console.print(figures_table([{"figure": k, "value": v} for k, v in figures.items()]))
    _show(console, outcome, table="stages")


def _show(console: Console, outcome: dict[str, Any], *, table: str = "rows") -> None:
    console.print(figures_table(outcome[table]))
    machine = outcome["machine"]
    console.print(f"{machine['cpus']} CPUs, {machine['cpu']}", highlight=False)


def _show_partition(console: Console, outcome: dict[str, Any]) -> None:
    several = len({row["seed"] for row in outcome["rows"]}) > 1
    hidden = {"digest", "tolerance", *(() if several else ("seed",))}  # what fits on a terminal
    short = {"too_hard": "hard", "similarity": "alike", "similarity_spread": "spread"}
    rows = [
        {short.get(k, k): v for k, v in row.items() if k not in hidden} for row in outcome["rows"]
    ]
    _show(console, {**outcome, "rows": rows})
    if outcome["above"]:
        console.print(f"above the curve of leiden-union: {', '.join(outcome['above'])}")


def _show_batch_sizes(console: Console, outcome: dict[str, Any]) -> None:
    rows = [
        {**row, "less_random": row["less_random"] and row["less_random"]["mean"]}
        for row in outcome["rows"]
    ]
    _show(console, {**outcome, "rows": rows})


def _show_cost(console: Console, outcome: dict[str, Any]) -> None:
    console.print(figures_table(outcome["exponents"]))
    _show(console, outcome)


def _show_scale(console: Console, outcome: dict[str, Any]) -> None:
    from b3_core.bench.scale import WAYS  # noqa: PLC0415

    for size in outcome["rows"]:
        for way in WAYS:
            if way in size:
                console.print(f"{size['rows']:,} rows, {way}: {size[way]['peak_mb']:,} MB at most")
                console.print(figures_table(size[way]["stages"]))
    console.print(figures_table(outcome["kept"]))
    for guess in outcome["extrapolated"]:
        console.print(guess, soft_wrap=True)
    _show(console, {key: value for key, value in outcome.items() if key == "exponent"})
