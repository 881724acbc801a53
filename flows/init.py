"""``b3 init``: a CONFIG for somebody's data, by a few questions.

look at the file -> suggestions -> questions, or options -> CONFIG, checked before it is written
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from flows.output import Force, check_output, write_output
from flows.running import AsJson, Verbose, run_command

Column = str | None
_ROLES = ("query", "positive", "negative", "group")


def _column(what: str) -> Any:
    return typer.Option(help=what, show_default=False, rich_help_panel="Answers")


def _size(what: str, least: int = 1) -> Any:
    return typer.Option(min=least, help=what, show_default=False, rich_help_panel="Answers")


def init(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Parquet, Arrow or tar (webdataset) file, folder or glob; local or s3://.",
        ),
    ],
    *,
    query: Annotated[Column, _column("Column of the queries' texts.")] = None,
    positive: Annotated[Column, _column("Column of the positives' texts.")] = None,
    negative: Annotated[Column, _column("Column of hard negatives' texts; - for none.")] = None,
    group: Annotated[
        Column, _column("Column whose equal values are positives of one another; - for none.")
    ] = (None),
    query_image: Annotated[Column, _column("Column of the queries' images.")] = None,
    query_video: Annotated[Column, _column("Column of the queries' videos.")] = None,
    positive_image: Annotated[Column, _column("Column of the positives' images.")] = None,
    positive_video: Annotated[Column, _column("Column of the positives' videos.")] = None,
    task: Annotated[
        Literal["retrieval", "grounding", "vqa", "classification"] | None,
        _column("What the pairs are; sets p."),
    ] = None,
    teacher: Annotated[Column, _column("static, minilm, or a model folder.")] = None,
    student: Annotated[Column, _column("tokens, static, glyphs, minilm, or a folder.")] = None,
    batch_size: Annotated[int | None, _size("Rows in a batch.", 2)] = None,
    k: Annotated[int | None, _size("Rows in a community.", 2)] = None,
    p: Annotated[int | None, _size("First ranks dropped.", 0)] = None,
    m: Annotated[int | None, _size("Ranks kept after them.")] = None,
    name: Annotated[Column, _column("Names the dataset, and its place in the store.")] = None,
    store: Annotated[Column, _column("Folder or s3:// URI of artifacts.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where CONFIG goes.")] = Path(
        "config.yaml"
    ),
    force: Force = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take all suggestions.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Look at data, ask a few questions, and write a CONFIG that runs.

    Answers are suggested from the columns' names, types and values; options answer beforehand.
    With `--yes`, or where nobody can be asked, suggestions are taken as they are.

    Example: `b3 init data/faq.parquet --positive reply -o faq.yaml`
    """
    given = {
        "query": query,
        "positive": positive,
        "negative": negative,
        "group": group,
        "query_image": query_image,
        "query_video": query_video,
        "positive_image": positive_image,
        "positive_video": positive_video,
        "task": task,
    }
    sizes = {
        "teacher": teacher,
        "student": student,
        "batch_size": batch_size,
        "k": k,
        "p": p,
        "m": m,
        "name": name,
        "store": store,
    }
    asked = not yes and sys.stdin.isatty()

    def work() -> dict[str, Any]:
        return _write(
            file,
            {role: value for role, value in given.items() if value is not None},
            sizes,
            output=output,
            force=force,
            ask=_ask if asked else _suggested,
        )

    if not (asked or yes):
        typer.echo("b3: nobody to ask: suggestions are taken", err=True)
    # No bars: they and questions share the terminal.
    run_command(work, as_json=as_json, verbose=verbose, show=_show, bars=False)


def _write(
    file: str,
    given: Mapping[str, str],
    sizes: Mapping[str, Any],
    *,
    output: Path,
    force: bool,
    ask: Any,
) -> dict[str, Any]:
    import yaml  # noqa: PLC0415

    from b3_core.config import absolute_uri, parse_config  # noqa: PLC0415
    from b3_core.config_text import config_text  # noqa: PLC0415
    from b3_core.glance import glance  # noqa: PLC0415
    from b3_core.suggest import answers, find  # noqa: PLC0415

    check_output(output, force=force)
    seen = glance(absolute_uri(file, Path.cwd()))
    found = find(seen, given)
    roles = ask.columns(found, given)
    if roles != dict(given):
        found = find(seen, roles)
    said = ask.sizes(lambda so_far: answers(found, seen, uri="", **so_far), sizes)
    chosen = answers(found, seen, uri=_as_written(file, output), **said)
    text = config_text(chosen)
    spec = parse_config(yaml.safe_load(text), base=output.absolute().parent)
    write_output(output, text)
    return {
        "config": str(output),
        "rows": seen.rows,
        "dataset": spec.datasets[0].model_dump(mode="json", exclude_defaults=True),
        "teacher": spec.teacher.model,
        "mining": spec.mining.model_dump(include={"p", "m", "k"}),
        "batch_size": spec.batches.batch_size,
        "notes": list(found.notes),
        "next": [f"b3 {verb} {shlex.quote(str(output))}" for verb in ("plan", "run")],
    }


def _as_written(file: str, output: Path) -> str:
    """Name local data from CONFIG's folder where it is below that, else from the root."""
    if "://" in file:
        return file
    path, folder = Path(file).expanduser().absolute(), output.absolute().parent
    return os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)


class _Suggested:
    """Asks nobody."""

    def columns(self, found: Any, given: Mapping[str, str]) -> dict[str, str]:
        return dict(given)

    def sizes(self, suggest: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(given)


class _Asked:
    """Asks at the terminal whatever no option has answered."""

    def columns(self, found: Any, given: Mapping[str, str]) -> dict[str, str]:
        """Return DatasetSpec's field -> column, as far as a person has said."""
        answered = dict(given)
        if found.layout != "columns":
            return answered
        for role in ("query", "positive"):
            sides = [name for name in found.columns if name.startswith(role)]
            pictured = [name for name in sides if name != role]
            if pictured:
                typer.echo(f"{role}: {_named(found.columns, sides)}", err=True)
                answered |= {name: found.columns[name] for name in sides if name not in given}
            elif role not in given:
                answered[role] = _choose(f"{role} column", found.choices[role], found.columns[role])
        for role in ("negative", "group"):
            if role not in given and (suggested := found.columns.get(role)):
                said = _choose(f"{role} column (- for none)", found.choices[role], suggested)
                answered[role] = said
        if "task" not in given:
            tasks = ["retrieval", "grounding", "vqa", "classification"]
            answered["task"] = _choose("task", tasks, found.task)
        return answered

    def sizes(self, suggest: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of ``Answers``, as far as a person has said.

        Parameters
        ----------
        suggest
            Completes what has been said so far: the size of a batch changes what k can be.
        """
        answered = dict(given)
        for field, question, read in (
            ("teacher", "teacher: static, minilm, or a model folder", str),
            ("batch_size", "rows in a batch", lambda said: _whole(said, batches_of=given["k"])),
            (
                "k",
                "rows in a community, of which a batch has several",
                lambda said: _whole(said, divides=answered["batch_size"]),
            ),
        ):
            if given.get(field) is None:
                default = getattr(suggest(answered), field)
                answered[field] = typer.prompt(question, default, value_proc=read, err=True)
        return answered


def _whole(said: str, *, divides: int | None = None, batches_of: int | None = None) -> int:
    """Read a size; what CONFIG could not have is asked for again."""
    from b3_core.suggest import dividing  # noqa: PLC0415

    size = int(said) if str(said).strip().isdecimal() else 0
    if size < 2:
        raise typer.BadParameter(f"{said!r} is no whole number from 2 on")
    if divides is not None and divides % size:
        able = ", ".join(map(str, dividing(divides)))
        raise typer.BadParameter(f"batches of {divides} cannot be of {size} each: {able} can be")
    if batches_of is not None and size % batches_of:
        raise typer.BadParameter(f"{size} is no multiple of k = {batches_of}")
    return size


_suggested, _ask = _Suggested(), _Asked()


def _choose(question: str, choices: Sequence[str], default: str) -> str:
    shown = [*choices[:12], *(["..."] if len(choices) > 12 else [])]
    typer.echo(f"  {', '.join(shown)}", err=True)
    while True:
        said: str = typer.prompt(question, default=default, err=True)
        if said in choices or (said == "-" and "- for none" in question):
            return said
        typer.echo(f"  {said!r} is none of them", err=True)


def _named(columns: Mapping[str, str], roles: Sequence[str]) -> str:
    return ", ".join(f"{role} = {columns[role]}" for role in roles)


def _show(console: Console, outcome: dict[str, Any]) -> None:
    data, mining = outcome["dataset"], outcome["mining"]
    roles = {
        role: value
        for role, value in data.items()
        if role.startswith(("query", "positive", "negative", "group")) and "prompt" not in role
    }
    lines = [
        f"{outcome['rows']:,} rows; {_named(roles, list(roles))}; "
        f"task {data.get('task', 'retrieval')}",
        f"teacher {outcome['teacher']}, p = {mining['p']}, m = {mining['m']}, k = {mining['k']}, "
        f"batches of {outcome['batch_size']}",
        *(f"note: {note}" for note in outcome["notes"]),
        f"written: {outcome['config']}",
        f"next: {outcome['next'][0]}    # what it will take",
        f"      {outcome['next'][1]}     # mine, train and evaluate",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
