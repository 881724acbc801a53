"""A whole installation as processes of this machine, each the real thing.

    python -m deployments.cluster up      (or: make cluster)
    Postgres - Prefect server - worker      Ray head - two Ray nodes      S3 gateway

supervisor keeps them: whatever dies is started again. Data, logs and secrets lie in one folder.
Ports are on the loopback interface alone, but for Ray's, which are on the machine's address and ask
for a token.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from xmlrpc.client import Fault, ServerProxy

import psutil
import typer
from supervisor.xmlrpc import SupervisorTransport

from b3_core.errors import B3Error, InputError
from b3_core.ray_session import ENVIRONMENT as RAY_ENVIRONMENT

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

BUCKET = "b3-lake"
ROOT = Path(__file__).parents[1]
#: In the order of their start; each is healthy before the next begins.
PROGRAMS = (
    "postgres",
    "s3",
    "prefect-server",
    "ray-head",
    "ray-node:0",
    "ray-node:1",
    "prefect-worker",
)

_BIN = Path(sys.executable).parent
_CONF = Path(__file__).with_name("supervisord.conf")
_WANTED_PORTS = {"prefect": 4200, "ray": 6380, "s3": 9000, "worker": 8080}
_LONGEST_SOCKET = 84  # a Unix socket's path may have 107 bytes; postgres/.s.PGSQL.5432 is added
#: Of the shell's, these would go along with the gateway's own keys, or lead past it.
_FOREIGN = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3")
_START_SECONDS = 120
_END_SECONDS = 90  # the longest stopwaitsecs of supervisord.conf, after which it kills, and some
_KEEPER_SECONDS = 30  # for the keeper itself, and what ended programs left behind
_DOWN = ("STOPPED", "FATAL")  # what supervisor does not start again
_POLL_SECONDS = 0.2

Home = Annotated[Path, typer.Option(help="Folder of data, logs and secrets.")]
_HOME = Path(".b3/cluster")


@dataclass(frozen=True)
class Cluster:
    """An installation in a folder: its ports, its secrets, its processes."""

    home: Path
    settings: dict[str, Any]

    @classmethod
    def at(cls, home: Path, *, create: bool = False) -> "Cluster":
        """Open the installation in a folder, or lay one out.

        Raises
        ------
        InputError
            There is none and ``create`` is false, or the folder's path is too long.
        """
        home = home.absolute()
        if len(str(home)) > _LONGEST_SOCKET:
            raise InputError(
                f"the cluster's folder {home} has {len(str(home))} characters",
                expected=f"at most {_LONGEST_SOCKET}: sockets lie in it",
                remedy="use --home with a shorter one",
            )
        file = home / "cluster.json"
        if not file.exists():
            if not create:
                raise InputError(f"no cluster in {home}", remedy="run: make cluster")
            (home / "log").mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            _write(
                file, {"ray_token": secrets.token_hex(24), "s3_key": f"b3{secrets.token_hex(8)}"}
            )
        settings = json.loads(file.read_text(encoding="utf-8"))
        # What an older version did not know of is added; what is there stays.
        ports = settings.setdefault("ports", {})
        for name, port in _WANTED_PORTS.items():
            ports.setdefault(name, _free_port(port))
        settings.setdefault("s3_secret", secrets.token_hex(20))
        _write(file, settings)
        return cls(home, settings)

    @property
    def ui(self) -> str:
        """Where a browser finds Prefect."""
        return f"http://127.0.0.1:{self.settings['ports']['prefect']}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a command needs to use this installation."""
        ports = self.settings["ports"]
        return {
            "PREFECT_API_URL": f"{self.ui}/api",
            "RAY_ADDRESS": f"127.0.0.1:{ports['ray']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.settings["ray_token"],
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": self.settings["s3_key"],
            "AWS_SECRET_ACCESS_KEY": self.settings["s3_secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def environment(self) -> dict[str, str]:
        """What its processes run with, that of this process included."""
        ports = self.settings["ports"]
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:8]
        return {
            **{name: value for name, value in os.environ.items() if name not in _FOREIGN},
            **RAY_ENVIRONMENT,
            **self.client_environment,
            "B3_CLUSTER": str(self.home),
            "B3_BIN": str(_BIN),
            "B3_PYTHON": sys.executable,
            "B3_PREFECT_PORT": str(ports["prefect"]),
            "B3_RAY_PORT": str(ports["ray"]),
            "B3_S3_PORT": str(ports["s3"]),
            # Ray's sockets lie far below this folder, so its path must be short.
            "B3_RAY_TEMP": str(Path(tempfile.gettempdir(), f"b3-ray-{digest}")),
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_WORKER_WEBSERVER_PORT": str(ports["worker"]),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }

    def control(self, *arguments: str) -> str:
        """Run ``supervisorctl``; return what it said."""
        done = subprocess.run(
            [_BIN / "supervisorctl", "-c", _CONF, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def end(self, program: str) -> None:
        """End a program and wait until it is gone; it stays down.

        ``supervisorctl stop`` would do, but while it waits the keeper turns in circles and takes a
        core from the runs that are to end (supervisor 4.3).

        Raises
        ------
        B3Error
            It is still there after the time in which the keeper kills it.
        """
        if self.supervisor is None:
            return
        server = ServerProxy(
            "http://keeper", transport=SupervisorTransport(serverurl=f"unix://{self.home}/ctl")
        )
        deadline = time.monotonic() + _END_SECONDS
        with server:
            # Not by its process: one that is about to be started again has none (BACKOFF, EXITED).
            while (now := server.supervisor.getProcessInfo(program))["statename"] not in _DOWN:
                if time.monotonic() > deadline:
                    raise B3Error(
                        f"{program} (process {now['pid']}) is {now['statename']} "
                        f"{_END_SECONDS} s after it was told to end",
                        remedy=f"look at {self.home}/log/supervisord.log",
                    )
                if now["statename"] != "STOPPING":
                    with contextlib.suppress(Fault):  # EXITED: it is asked again once it starts
                        server.supervisor.stopProcess(program, False)
                time.sleep(_POLL_SECONDS)

    def pid(self, program: str) -> int | None:
        """Return the process id of a program, None if it is not running."""
        said = self.control("pid", program)
        return int(said) if said.isdigit() and said != "0" else None

    @property
    def supervisor(self) -> psutil.Process | None:
        """The process that keeps the others, if it runs."""
        try:
            pid = int((self.home / "supervisord.pid").read_text())
            process = psutil.Process(pid)
            return process if str(_CONF) in process.cmdline() else None
        except (OSError, ValueError, psutil.Error):
            return None

    def run(self, *command: str | Path) -> None:
        """Run a command with the installation's environment, its output shown.

        Raises
        ------
        B3Error
            It failed.
        """
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=self.environment, check=False)
        if done.returncode:
            raise B3Error(f"{' '.join(map(str, command[1:4]))} ended with {done.returncode}")

    def start(self, say: Callable[[str], None]) -> None:
        """Start what is not running, in order, and wait until each answers.

        Raises
        ------
        B3Error
            A program does not come up; its log is named.
        """
        if self.supervisor is None:
            self._format_volume()
            self.run(_BIN / "supervisord", "-c", _CONF)
        checks: dict[str, Callable[[], bool]] = {
            "postgres": (self.home / "postgres" / ".s.PGSQL.5432").exists,
            "s3": lambda: _answers(self.settings["ports"]["s3"]),
            "prefect-server": lambda: _answers(self.settings["ports"]["prefect"]),
            "ray-head": lambda: _answers(self.settings["ports"]["ray"]),
        }
        for program in PROGRAMS:
            if self.pid(program) is None:
                self.control("start", program)
            deadline = time.monotonic() + _START_SECONDS
            check = checks.get(program, lambda program=program: self.pid(program) is not None)
            while not check():
                if time.monotonic() > deadline:
                    log = program.replace(":", "-")
                    raise B3Error(
                        f"{program} did not start within {_START_SECONDS} s",
                        remedy=f"look at {self.home}/log/{log}.log",
                    )
                time.sleep(0.2)
            say(f"{program} is up")

    def stop(self) -> None:
        """End all processes, in the opposite order, and wait until they are gone.

        Raises
        ------
        B3Error
            Some are there even after SIGKILL.
        """
        keeper = self.supervisor
        if keeper is None:
            return
        processes = keeper.children(recursive=True)
        for program in reversed(PROGRAMS):
            with contextlib.suppress(B3Error):  # the rest is ended too, and what is left killed
                self.end(program)
        keeper.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([keeper, *processes], timeout=_KEEPER_SECONDS)
        for process in left:  # what a killed program left behind
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _, left = psutil.wait_procs(left, timeout=5)
        stuck = [str(process.pid) for process in left if not _is_over(process)]
        if stuck:
            raise B3Error(
                f"still there after SIGKILL: processes {', '.join(stuck)}",
                remedy="look what they wait for (ps, state D), or restart the machine",
            )

    def _format_volume(self) -> None:
        folder = self.home / "s3"
        if (folder / "meta.db").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        command = [_BIN / "juicefs", "format", f"sqlite3://{folder}/meta.db", BUCKET]
        subprocess.run(
            [*command, "--storage", "file", "--bucket", f"{folder}/data/"],
            check=True,
            capture_output=True,
        )


def put_sample(pairs: int) -> None:
    """Write the demo's pairs to the bucket as a dataset, unless one is there.

    Parameters
    ----------
    pairs
        Training rows at most.
    """
    import s3fs  # noqa: PLC0415 - after the environment is set

    from b3_core.store import ArtifactStore  # noqa: PLC0415
    from flows.demo import DemoCorpus  # noqa: PLC0415

    fs = s3fs.S3FileSystem()
    folder = f"{BUCKET}/data/python-code"
    if fs.exists(f"{folder}/train/part-0.parquet"):
        return
    corpus = DemoCorpus.of("code", pairs).run(ArtifactStore(f"s3://{BUCKET}/artifacts"))
    for part in ("validation", "train"):
        fs.put_file(str(corpus.path(f"{part}.parquet")), f"{folder}/{part}/part-0.parquet")


@app.command()
def up(
    recipe: Annotated[str, typer.Argument(help="What to deploy: a recipe or a CONFIG.")] = "laptop",
    *,
    home: Home = _HOME,
    pairs: Annotated[int, typer.Option(min=512, help="Rows of the sample dataset.")] = 5_000,
    watch_seconds: Annotated[
        float | None, typer.Option(min=5, help="How often datasets are looked at.")
    ] = None,
) -> None:
    """Start every process, put a sample dataset, deploy; what is there already is left as it is."""
    with _one_line():
        cluster = Cluster.at(home, create=True)
        cluster.start(typer.echo)
        for name in _FOREIGN:
            os.environ.pop(name, None)
        os.environ.update(cluster.environment)
        put_sample(pairs)
        typer.echo(f"sample dataset: s3://{BUCKET}/data/python-code")
        every = [] if watch_seconds is None else ["--watch-seconds", str(watch_seconds)]
        cluster.run(sys.executable, "-m", "deployments.bootstrap", recipe, *every)
        at = "" if home == _HOME else f" --home {home}"
        typer.echo(
            f"\nPrefect: {cluster.ui}\n"
            f'in a shell: eval "$({Path(sys.executable).name} -m deployments.cluster env{at})"\n'
            f"a run:      prefect deployment run pipeline/{recipe} --watch\n"
            f"the end:    {'make cluster-down' if not at else f'... down{at}'}"
        )


@app.command()
def down(*, home: Home = _HOME) -> None:
    """End every process; data stays."""
    with _one_line():
        Cluster.at(home).stop()


@app.command()
def status(*, home: Home = _HOME) -> None:
    """Show which processes run."""
    with _one_line():
        typer.echo(Cluster.at(home).control("status"))


@app.command()
def env(*, home: Home = _HOME) -> None:
    """Print shell lines that lead commands to this installation."""
    with _one_line():
        typer.echo("unset " + " ".join(_FOREIGN))
        for name, value in Cluster.at(home).client_environment.items():
            typer.echo(f"export {name}={shlex.quote(value)}")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except B3Error as error:
        typer.echo(f"b3: {error}", err=True)
        raise typer.Exit(error.exit_code) from error


def _is_over(process: psutil.Process) -> bool:
    """Tell whether a process has ended; one that nobody waits for (a container's) stays listed."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _write(file: Path, settings: dict[str, Any]) -> None:
    """Keep what an installation has once chosen; the file's mode is as it was."""
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else any that is."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found: int = probe.getsockname()[1]
            return found
    raise B3Error("no port is free on the loopback interface")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


if __name__ == "__main__":
    app()
