"""``b3 report``: what a manifest is worth, on one page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from b3_core.errors import B3Error, InputError
from flows.planning import Prices
from flows.running import AsJson, Verbose, run_command


def report(
    manifest: Annotated[str, typer.Argument(help="A manifest's URI, as b3 mine prints it.")],
    other: Annotated[
        str | None, typer.Argument(help="Another's, of any store: the two side by side.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page goes.")] = Path(
        "report.html"
    ),
    batches: Annotated[int, typer.Option(min=0, max=64, help="Batches to read.")] = 8,
    rows: Annotated[
        int, typer.Option(min=2, help="Slots of a dataset whose pairs are looked at, at most.")
    ] = 65_536,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0,
    media: Annotated[
        list[str],
        typer.Option(help="DATASET=FOLDER of pictures that rows name by path; repeatable."),
    ] = [],  # noqa: B006
    price: Prices = [],  # noqa: B006
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a page about a manifest: what it holds, how hard its batches are, what is wrong.

    One HTML file that needs no network: settings, lineage and cost; in-batch similarity beside
    random batches and the paper's; likely false negatives; duplicates; batches to read. With
    `--json` the same figures on stdout too. Prices are of this machine's hours, whatever mined.

    Example: `b3 report .b3/demo/manifest/0123456789abcdef0123 -o report.html`
    """

    def work() -> dict[str, Any]:
        from b3_core.diff import diff  # noqa: PLC0415
        from b3_core.forecast.machine import Machine, gpus_here, read_prices  # noqa: PLC0415
        from b3_core.report.dataset import Options  # noqa: PLC0415
        from b3_core.report.describe import describe  # noqa: PLC0415
        from b3_core.report.page import page  # noqa: PLC0415
        from b3_core.store import open_artifact  # noqa: PLC0415
        from tasks import reporting  # noqa: PLC0415

        prices = read_prices(price)
        gpus = gpus_here() if "gpu-hour" in prices else 0
        hourly = replace(Machine.here("."), prices=prices, gpus=gpus).money(3600)
        options = Options(rows, batches, seed, media=_folders(media), hourly=hourly)
        artifacts = [open_artifact(uri) for uri in (manifest, other) if uri is not None]
        with reporting.step("report") as progress:
            described = [describe(artifact, options, progress) for artifact in artifacts]
        changes: Any = None
        if len(artifacts) > 1:
            try:
                changes = diff(*artifacts)
            except B3Error as error:
                changes = f"They cannot be compared row by row: {error.problem}."
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(described, changes), encoding="utf-8")
        found: dict[str, Any] = {"output": str(output), "reports": [_slim(d) for d in described]}
        return found if changes is None else {**found, "differences": changes}

    run_command(work, as_json=as_json, verbose=verbose, show=_show)


def _folders(named: list[str]) -> dict[str, str]:
    found = {}
    for each in named:
        dataset, equals, folder = each.partition("=")
        if not (dataset and equals and folder):
            raise InputError(f"--media {each}", expected="DATASET=FOLDER")
        found[dataset] = folder
    return found


def _slim(described: dict[str, Any]) -> dict[str, Any]:
    """Leave thumbnails out of what a machine reads."""
    slim: dict[str, Any] = json.loads(json.dumps(described))
    for batch in slim["batches"]:
        for row in batch["rows"]:
            del row["query_picture"], row["positive_picture"]
    return slim


def _show(console: Console, outcome: dict[str, Any]) -> None:
    for number, found in enumerate(outcome["reports"]):
        letter = f"{'AB'[number]}: " if len(outcome["reports"]) > 1 else ""
        for each in found["advice"]:
            said = f"{letter}{each['dataset']}: {each['says']}; {each['remedy']}"
            console.print(said, highlight=False, markup=False, soft_wrap=True)
        for sentence in found["gone"]:
            console.print(f"{letter}{sentence}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {outcome['output']}", highlight=False, soft_wrap=True)
