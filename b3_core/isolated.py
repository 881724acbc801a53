"""Questions answered in processes of their own, whose end is an answer too.

    questions -> batches -> process: memory capped, no file written -> one line an answer
                                |  ended, or silent for too long
                                v
                 what it was at is asked again, first of all in a new process; ended again: Ended

For work on bytes that nobody vouches for: a decoder may crash, hang or take all memory, and the
other questions must not suffer. What comes back is JSON and read as such, so that a process that
was taken over can lie to this one, and no more.
"""

import contextlib
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from b3_core.errors import B3Error, InputError, RefusedError, UnreachableError
from b3_core.progress import Progress, silent

_BATCH = 64  # questions sent at once: a wake-up of both sides costs more than a small answer
_NO_MEMORY = 77  # exit code
_START = "import sys; sys.path[:] = sys.argv[1:]; from b3_core import isolated; isolated.serve()"
_ERRORS = {error.__name__: error for error in (InputError, RefusedError, UnreachableError)}


@dataclass(frozen=True)
class Ended:
    """In place of an answer: the process did not survive the question."""

    reason: str


@dataclass
class _Worker:
    """A process, and what it was asked and has not answered."""

    process: "subprocess.Popen[bytes]"
    asked: "deque[int]" = field(default_factory=deque)
    answered: int = 0
    since: float = 0.0  # when the question that it is at began
    rest: bytes = b""  # of a line that has not come whole


def ask(
    function: str,
    settings: Any,
    questions: Sequence[Any],
    *,
    workers: int = 1,
    seconds: float = 60.0,
    memory: int = 2 << 30,
    progress: Progress = silent,
) -> list[Any]:
    """Answer every question, each in one of a few processes.

    Parameters
    ----------
    function
        ``module:name`` of a function that is called once a process with the settings, and returns
        the function that answers a question.
    settings, questions
        What JSON can hold.
    workers
        Processes, at least 1.
    seconds
        What a question may take.
    memory
        Bytes of address space that a process may take beyond what it has when it begins (Linux).
    progress
        Told how many questions are answered.

    Returns
    -------
    list
        An answer a question, in their order; what JSON can hold, or :class:`Ended`.

    Raises
    ------
    InputError, RefusedError, UnreachableError
        The function raised it.
    RuntimeError
        The function raised something else, or no process could be started.
    """
    head = {"function": function, "settings": settings, "memory": memory}
    pool = _Pool(json.dumps(head), questions, seconds, f"{memory >> 20:,} MiB")
    with contextlib.ExitStack() as stack:
        stack.callback(pool.close)
        pool.open(min(max(workers, 1), len(questions)))
        while pool.busy:
            pool.step()
            progress(len(questions) - pool.unanswered, len(questions))
    return pool.answers


class _Pool:
    def __init__(self, head: str, questions: Sequence[Any], seconds: float, memory: str) -> None:
        self._head, self._questions = head, questions
        self._seconds, self._memory = seconds, memory
        self._todo = deque(range(len(questions)))
        self._selector = selectors.DefaultSelector()
        self.busy: list[_Worker] = []
        self.answers: list[Any] = [None] * len(questions)
        self.unanswered = len(questions)

    def open(self, workers: int) -> None:
        """Start the processes, all at once, and ask them."""
        for _ in range(workers):
            self.busy.append(self._start())
        self._share = 4 * workers  # so that all of them end at about the same time
        for worker in list(self.busy):
            self._await(worker)
            self._give(worker)

    def close(self) -> None:
        """End all processes."""
        for worker in list(self.busy):
            self._end(worker)
        self._selector.close()

    def step(self) -> None:
        """Wait for something to happen, and see to it."""
        next_late = min(worker.since for worker in self.busy) + self._seconds
        ready = self._selector.select(max(next_late - time.monotonic(), 0))
        # Of those that had said nothing by now: what follows may take long, and is not their doing.
        late = time.monotonic() - self._seconds
        quiet = [each for each in self.busy if each.since <= late]
        for key, _ in ready:
            worker: _Worker = key.data
            if worker in quiet:
                quiet.remove(worker)
            self._read(worker, os.read(key.fd, 1 << 16))
        for worker in quiet:
            self._end(worker)
            self._replace(worker, f"it was not done after {self._seconds:g} s")

    def _read(self, worker: _Worker, body: bytes) -> None:
        if not body:
            self._replace(worker, self._reason(self._end(worker, patience=10)))
            return
        *lines, worker.rest = (worker.rest + body).split(b"\n")
        for line in lines:
            self._answer(worker, json.loads(line))
        if not worker.asked:
            self._give(worker)

    def _start(self) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        worker = _Worker(process)
        self._send(worker, self._head)
        return worker

    def _await(self, worker: _Worker) -> None:
        process = worker.process
        assert process.stdout and process.stderr
        if os.read(process.stdout.fileno(), 1) != b"\n":
            said = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"a process did not start: {said[-1] if said else 'nothing said'}")
        process.stderr.close()
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _give(self, worker: _Worker) -> None:
        """Ask the next questions of a process that waits for some, or let it go."""
        size = min(_BATCH, -(-len(self._todo) // self._share))
        batch = [self._todo.popleft() for _ in range(size)]
        if batch:
            self._put(worker, batch)
            return
        self._end(worker)

    def _put(self, worker: _Worker, batch: list[int]) -> None:
        worker.asked.extend(batch)
        worker.since = time.monotonic()
        # It reads all of this before it answers any, so neither waits for the other.
        self._send(worker, json.dumps([self._questions[number] for number in batch]))

    @staticmethod
    def _send(worker: _Worker, line: str) -> None:
        assert worker.process.stdin
        rest = memoryview(line.encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # that it has ended is seen where it is read
            while rest:
                rest = rest[worker.process.stdin.write(rest) :]

    def _answer(self, worker: _Worker, said: dict[str, Any]) -> None:
        if "raised" in said:
            name, *parts = said["raised"]
            if name in _ERRORS:
                raise _ERRORS[name](parts[0], expected=parts[1], remedy=parts[2])
            raise RuntimeError(f"a process failed: {parts[0]}")
        self._note(worker.asked.popleft(), said["answer"])
        worker.answered += 1
        worker.since = time.monotonic()

    def _note(self, number: int, answer: Any) -> None:
        self.answers[number] = answer
        self.unanswered -= 1

    def _replace(self, worker: _Worker, reason: str) -> None:
        """Go on without a process: what it was at may have suffered from what was before it."""
        culprit, *rest = worker.asked
        self._todo.extendleft(reversed(rest))
        if not worker.answered:
            self._note(culprit, Ended(reason))
            if not self._todo:
                return
        fresh = self._start()
        self.busy.append(fresh)
        self._await(fresh)
        if worker.answered:
            self._put(fresh, [culprit])
        else:
            self._give(fresh)

    def _end(self, worker: _Worker, patience: float = 0) -> int:
        """End a process; return its exit code, or minus the signal that ended it before."""
        process = worker.process
        self.busy.remove(worker)
        assert process.stdout
        with contextlib.suppress(KeyError):  # it never began
            self._selector.unregister(process.stdout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        return code

    def _reason(self, code: int) -> str:
        if code == _NO_MEMORY:
            return f"it takes more than {self._memory} of memory"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def serve() -> None:
    """Answer the questions that come in on stdin, a JSON list a line: the whole of a process."""
    answers, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # C libraries print
    head = json.loads(sys.stdin.buffer.readline())
    module, _, name = head["function"].partition(":")
    answer = getattr(importlib.import_module(module), name)(head["settings"])
    _confine(head["memory"])
    os.write(answers, b"\n")
    os.dup2(null, 2)
    for line in sys.stdin.buffer:
        for question in json.loads(line):
            body = json.dumps(_said(answer, question)).encode() + b"\n"
            while body:
                body = body[os.write(answers, body) :]


def _said(answer: Callable[[Any], Any], question: Any) -> dict[str, Any]:
    try:
        return {"answer": answer(question)}
    except MemoryError:
        os._exit(_NO_MEMORY)
    except B3Error as error:
        return {"raised": [type(error).__name__, error.problem, error.expected, error.remedy]}
    except Exception:
        return {"raised": ["", traceback.format_exc().strip().replace("\n", " | ")]}


def _confine(memory: int) -> None:
    """Let this process take so much more memory, and write no file."""
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(kind, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            now = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # macOS, where the limit would not be kept either
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = now + memory if most == resource.RLIM_INFINITY else min(now + memory, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
