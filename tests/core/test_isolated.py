"""Questions that kill, hang, or eat all memory cost themselves, and nobody else."""

import contextlib
import signal
import time

import pytest

from b3_core import isolated
from b3_core.errors import InputError
from b3_core.isolated import Ended, ask
from tests.obeying import MIB


def asked(*questions, **options):
    return ask("tests.obeying:obeying", "hello", questions, **options)


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_come_in_order_and_progress_is_told(workers):
    told = []
    questions = [["say", "é\ud800" * (i % 3) + str(i)] for i in range(300)]
    answers = asked(*questions, workers=workers, progress=lambda *at: told.append(at))
    assert answers == [["hello", text] for _, text in questions]
    assert told == sorted(told) and told[-1] == (300, 300)


def test_nothing_asked_starts_no_process(monkeypatch):
    monkeypatch.setattr(isolated.subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    assert asked() == []


def test_a_question_longer_than_a_pipe_holds():
    text = "x" * (1 << 20)
    assert asked(["say", text], ["say", text], workers=1) == [["hello", text]] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_of_a_process_is_the_fault_of_one_question(workers):
    deadly = {
        7: (["exit", 3], "its process ended with exit code 3"),
        8: (["signal", signal.SIGSEGV], "its process was ended by SIGSEGV"),
        20: (["take", 500], "it takes more than 256 MiB of memory"),
        39: (["exit", 0], "its process ended with exit code 0"),
    }
    questions = [deadly.get(i, [["say", i]])[0] for i in range(40)]
    answers = asked(*questions, workers=workers, memory=256 * MIB)
    assert {i: answers[i] for i in deadly} == {i: Ended(why) for i, (_, why) in deadly.items()}
    assert all(answers[i] == ["hello", i] for i in range(40) if i not in deadly)


def test_who_is_silent_for_too_long_is_ended_and_the_others_are_not():
    begun = time.monotonic()
    questions = [["say", 0], ["sleep", 600], *[["sleep", 0.2]] * 8, ["say", 1]]
    answers = asked(*questions, workers=2, seconds=1.0)
    assert answers[1] == Ended("it was not done after 1 s")
    assert [*answers[:1], *answers[2:]] == [["hello", 0], *[0.2] * 8, ["hello", 1]]
    assert time.monotonic() - begun < 20


def test_a_leak_is_not_blamed_on_who_comes_next():
    answers = asked(["keep", 150], ["take", 200], ["take", 10], memory=256 * MIB)
    assert answers == [1, 200 * MIB, 10 * MIB]


def test_a_process_cannot_write_files_and_what_it_prints_is_no_answer(tmp_path):
    file = tmp_path / "written"
    with pytest.raises(RuntimeError, match="File too large"):
        asked(["write", str(file)])
    assert asked(["print", 1 << 20], ["say", 1]) == ["printed", ["hello", 1]]


def test_what_the_function_raises_comes_through():
    with pytest.raises(InputError, match="no such root; expected x; y"):
        asked(["say", 1], ["refuse", "no such root"], workers=2)
    with pytest.raises(RuntimeError, match="ValueError: 5"):
        asked(["what", 5])
    with pytest.raises(RuntimeError, match="did not start: .*no attribute 'nothing'"):
        ask("tests.obeying:nothing", None, [1])


@pytest.mark.parametrize("last", [["say", 0], ["refuse", "x"]])
def test_no_process_is_left(monkeypatch, last):
    started, start = [], isolated.subprocess.Popen
    monkeypatch.setattr(
        isolated.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1]
    )
    with contextlib.suppress(InputError):
        asked(["say", 0], last, *[["sleep", 0.1]] * 2, workers=2)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)
