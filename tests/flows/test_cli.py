"""Help that reads like documentation, completion, and both at once: nothing heavy is imported."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
import typer

from flows.cli import app
from flows.running import config_files
from tests.conftest import ROOT

HEAVY = ("torch", "prefect", "ray", "numba", "sentence_transformers", "pyarrow", "scipy", "igraph")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_help_and_completion_import_nothing_heavy():
    code = (
        "import sys\nfrom flows.cli import main\nsys.argv = ['b3', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(code)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.5, f"{spent:.2f} s of CPU"


def test_verbs_stand_in_groups(b3):
    said = b3("--help", COLUMNS="120").stdout
    panels = re.findall(r"─ (Run|Look|Measure|Keep) ─", said)
    assert panels == ["Run", "Look", "Measure", "Keep"]
    for verb in ("init", "plan", "demo", "run", "bench", "gc", "verify"):
        assert re.search(rf"│ {verb} ", said), verb
    for first in ("b3 demo", "b3 init", "b3 plan", "b3 run"):
        assert first in " ".join(said.split())


def test_gc_of_what_is_no_store_is_refused(b3, tmp_path):
    done = b3("gc", str(tmp_path / "none"), check=False)
    assert done.returncode == 2
    assert f"b3: there is no store at {tmp_path}/none; expected a folder" in done.stderr
    (tmp_path / "there").mkdir()
    assert "0 orphans" in b3("gc", str(tmp_path / "there"), TMPDIR=str(tmp_path)).stdout


def verbs():
    command = typer.main.get_command(app)
    for name, each in command.commands.items():
        if hasattr(each, "commands"):
            yield from ((name, inner, found) for inner, found in each.commands.items())
        else:
            yield name, "", each


@pytest.mark.parametrize(("verb", "inner", "found"), list(verbs()))
def test_every_verb_has_an_example_of_itself_that_parses(verb, inner, found):
    example = re.search(r"Example: `b3 ([^`]+)`", found.help or "")
    assert example, f"b3 {verb} {inner} has no example"
    words = example[1].split()
    assert words[: 2 if inner else 1] == [verb, *([inner] if inner else [])]
    # Parsed, not run: unknown options and values out of bounds are refused.
    found.make_context("b3", words[2 if inner else 1 :])


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zsh", "fish"))]
)
def test_completion_can_be_shown(b3, shell):
    said = b3("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1").stdout
    assert "_B3_COMPLETE=" in said and "b3" in said.replace("_B3_", "")


def complete(*words):
    code = "from flows.cli import app\napp(prog_name='b3')"
    environment = {
        "_B3_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    return python(code, **environment).stdout.split()


def test_bash_completes_verbs_options_and_configs(tmp_path):
    (tmp_path / "one.yaml").write_text("")
    (tmp_path / "other.txt").write_text("")
    assert complete("b3", "pl") == ["plan"]
    assert "--memory-gb" in complete("b3", "plan", "--mem")
    assert complete("b3", "run", f"{tmp_path}/o") == [f"{tmp_path}/one.yaml"]


def test_configs_are_completed_folder_by_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    for name in ("a.yaml", "recipes/b.yml", "recipes/c.md", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    assert config_files("") == ["a.yaml", "recipes/"]
    assert config_files("recipes/") == ["recipes/b.yml"]
    assert config_files("rec") == ["recipes/"]
    assert config_files("nowhere/x") == []
    assert config_files(f"{tmp_path}/a") == [f"{tmp_path}/a.yaml"]


def test_prices_that_cannot_be_read_are_refused(command, write_config):
    code, _, err = command("plan", write_config(), "--price", "tea=1")
    assert code == 2 and "cpu-hour=NUMBER" in err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plan_of_a_small_run_and_of_what_is_left_of_it(b3, write_config):
    config = write_config()
    said = b3(
        "plan", config, "--json", "--probe-seconds", "1", "--price", "cpu-hour=1", timeout=800
    )
    found = json.loads(said.stdout)
    assert {stage["stage"] for stage in found["stages"]} >= {"shards", "ranks", "student"}
    assert all(stage["done"] == 0 and stage["work_seconds"] > 0 for stage in found["stages"])
    assert found["total"]["money"] > 0 and found["fits"]
    assert not os.path.exists(json.loads(config.read_text())["store"]["root"] + "/faq")

    b3("mine", config)
    left = json.loads(
        b3(
            "plan", config, "--json", "--probe-seconds", "1", "--memory-gb", "0.2", timeout=800
        ).stdout
    )
    by = {stage["stage"]: stage for stage in left["stages"]}
    assert by["ranks"]["basis"] == "done" and by["ranks"]["seconds"] == 0
    assert by["student"]["seconds"] > 0
    assert any(problem.startswith("student: ") for problem in left["problems"])
    strict = b3("plan", config, "--strict", "--memory-gb", "0.2", check=False, timeout=800)
    assert strict.returncode == 1 and "does not fit" in strict.stdout
