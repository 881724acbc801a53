"""The command ``export``: an artifact out of the store, as a folder of plain files."""

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from b3_core.errors import InputError
from flows.running import AsJson, Verbose, run_command

if TYPE_CHECKING:
    from b3_core.artifacts import Artifact


def export(
    uri: Annotated[str, typer.Argument(help="A student's URI, or any other artifact's.")],
    folder: Annotated[Path, typer.Argument(help="Where to; a new or an empty folder.")],
    *,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Copy a student out of the store as a model folder, every file checked against its hash.

    Files in the store carry a hash in their names; here they have their own, so that
    `SentenceTransformer("student")` loads it, prompts included (one of `glyphs`:
    `b3_core.vision.load_glyph_student`). Of any other artifact all files are copied.

    Example: `b3 export .b3/faq/student/4b11d74c7540b29e4339 student`
    """

    def work() -> dict[str, Any]:
        from b3_core.store import open_artifact  # noqa: PLC0415

        return {"folder": str(folder.absolute()), "files": lay_out(open_artifact(uri), folder)}

    def show(console: Console, outcome: dict[str, Any]) -> None:
        console.print(
            f"{outcome['folder']}: {len(outcome['files'])} files", highlight=False, soft_wrap=True
        )

    run_command(work, as_json=as_json, verbose=verbose, show=show)


def lay_out(artifact: "Artifact", folder: Path) -> list[str]:
    """Copy an artifact, of a student its model, to a folder: all of it or nothing.

    Returns
    -------
    list of str
        Paths in the folder of what was copied.

    Raises
    ------
    InputError
        The folder has something in it, or is a file.
    CorruptArtifactError
        The stored bytes are not the recorded ones; the folder is as it was.
    """
    is_new = not folder.exists()
    if not is_new and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is there already", expected="a new or an empty folder", remedy="name one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    is_model = any(name.startswith("model/") for name in artifact.files)
    try:
        # Inside, for an empty folder may be a mount, or the shell's own: it cannot be replaced.
        with tempfile.TemporaryDirectory(prefix=".b3-export-", dir=folder) as draft:
            names = artifact.lay_out(Path(draft), "model/" if is_model else "")
            for entry in sorted(Path(draft).iterdir()):
                shutil.move(entry, folder)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise
    return names
