"""Put everything on a Prefect server that running a CONFIG takes; again and again if need be.

    python -m deployments.bootstrap CONFIG...      (a file, or a recipe's name: laptop)

A work pool with a queue for each CONFIG, its five deployments, an automation that marks runs as
crashed when their process is gone, one that notifies, and a limit for GPUs.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

import typer
from prefect import get_client
from prefect.automations import AutomationCore
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL

from b3_core.config import load_config
from b3_core.errors import B3Error, InputError, reason
from deployments import POOL
from tasks.turns import GPU_LIMIT, PART

FLOWS = ("pipeline", "mine", "train", "evaluate", "watch")
ROOT = Path(__file__).parents[1]
RECIPES = Path(__file__).parent / "recipes"

_PREFECT_FILE = Path(__file__).parent / "prefect.yaml"
_SERVER_SECONDS = 120
_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
_NOTIFY = "b3: failed or crashed, so notify"
_HEARTBEAT = "prefect.flow-run.heartbeat"
_WATCHES = 4  # at once, of all CONFIGs: one that reads a large dataset holds up nobody else's
_SILENCE = timedelta(seconds=100)  # three heartbeats and a little
_BEGINNING = timedelta(minutes=10)  # from a worker's taking a run to the run's first state
_ANY_RUN = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
_OURS = ResourceSpecification(
    {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.b3"}
)
_OURS_AND_PARTS = ResourceSpecification(
    {
        "prefect.resource.role": "tag",
        "prefect.resource.id": ["prefect.tag.b3", f"prefect.tag.{PART}"],
    }
)


def config_file(named: str) -> Path:
    """Return the path of a CONFIG, or of the recipe of that name.

    Raises
    ------
    InputError
        There is neither.
    """
    for path in (Path(named), RECIPES / f"{named}.yaml"):
        if path.is_file():
            return path.absolute()
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise InputError(
        f"no CONFIG {named}", expected=f"a YAML file, or a recipe: {known}", remedy="check the path"
    )


def deploy(config: Path, name: str) -> None:
    """Deploy the five flows of a CONFIG by ``prefect deploy``.

    Raises
    ------
    B3Error
        Prefect refuses; its own words are part of the error.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(
        [*command, "--prefect-file", str(_PREFECT_FILE)],
        cwd=ROOT,
        env={**os.environ, "B3_CONFIG": str(config), "B3_NAME": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise B3Error(f"prefect deploy failed for {config}: {' '.join(said[-3:])}")


async def bootstrap(
    configs: Sequence[Path],
    *,
    watch_seconds: float | None,
    gpu_runs: int | None,
    notify: str | None,
) -> None:
    """Make or renew all of it; what was switched on or off stays so.

    Parameters
    ----------
    watch_seconds
        Interval of the ``watch`` deployments; None for the one they have, or prefect.yaml's.
    gpu_runs
        How many runs may use GPUs at once; 0 for no limit, None for the one there is.
    notify
        URL that gets a POST when a run fails or crashes; blank for none, None for the one there is.

    Raises
    ------
    InputError
        No server is named; two CONFIGs have one name, or one has that of the queue of all ``watch``
        deployments.
    B3Error
        The server or ``prefect deploy`` fails; what could not be set back is named in notes.
    """
    if PREFECT_API_URL.value() is None:
        raise InputError(
            "no Prefect server is named to deploy to",
            expected="its address, such as http://host:4200/api, in PREFECT_API_URL",
            remedy="set it, or run: make cluster",
        )
    names: dict[str, Path] = {}
    for config in configs:
        name = load_config(config).name
        if name in names or name == "watch":
            raise InputError(
                f"{config} is called {name!r}, as another CONFIG or the queue of `watch` is",
                expected="a name of its own: deployments are called by it",
                remedy="set `name` in it",
            )
        names[name] = config
    async with get_client() as client:
        await _reach(client)
        await _make_pool(client, list(names))
        chosen = await _Chosen.read(client, list(names))
        async with chosen.kept(client):
            for name, config in names.items():
                deploy(config, name)
                typer.echo("deployed: " + " ".join(f"{flow}/{name}" for flow in FLOWS))
            await _make_automation(client, _zombies())
            await _make_automation(client, _stuck())
            if notify:
                await _make_automation(client, await _notification(notify))
            elif notify is not None:
                await _drop_automation(client, _NOTIFY)
        if watch_seconds is not None:  # what was chosen before is set back by now
            await _watch_every(client, list(names), watch_seconds)
        if gpu_runs:
            await client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, limit=gpu_runs)
        elif gpu_runs is not None:
            with contextlib.suppress(ObjectNotFound):
                await client.delete_global_concurrency_limit_by_name(GPU_LIMIT)


@dataclass(frozen=True)
class _Chosen:
    """What an operator may have set by hand, and a deployment sets back."""

    schedules: Mapping[tuple[str, str | None], DeploymentSchedule]
    """Deployment, slug -> what it was."""
    paused: Set[str]
    """Deployments."""
    off: Set[str]
    """Names of automations."""

    @classmethod
    async def read(cls, client: PrefectClient, names: Sequence[str]) -> Self:
        schedules, paused = {}, set()
        for title in (f"{flow}/{name}" for flow in FLOWS for name in names):
            with contextlib.suppress(ObjectNotFound):
                found = await client.read_deployment_by_name(title)
                schedules |= {(title, each.slug): each for each in found.schedules}
                paused |= {title} if found.paused else set()
        off = {each.name for each in await client.read_automations() if not each.enabled}
        return cls(schedules, paused, off)

    @contextlib.asynccontextmanager
    async def kept(self, client: PrefectClient) -> AsyncIterator[None]:
        """Set it again after a block, whether or not that fails: all of it that can be.

        Raises
        ------
        B3Error
            Something could not be set again. What the block raises comes first; of several errors
            the others are notes.
        """
        errors: list[BaseException] = []
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
        try:
            await asyncio.sleep(0)  # Ctrl-C while `prefect deploy` ran: told here, not to a step
        except asyncio.CancelledError as error:
            errors.insert(0, error)
        for what, step in self._steps(client):
            try:
                await step
            except Exception as error:  # noqa: BLE001 - the other steps are taken all the same
                problem = B3Error(f"{what}: {reason(error)}", remedy="do it in the UI")
                problem.__cause__ = error
                errors.append(problem)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(str(other))
            raise errors[0]

    def _steps(self, client: PrefectClient) -> Iterator[tuple[str, Awaitable[None]]]:
        """Yield what sets it again, each with what to say if that fails."""
        for (title, slug), then in self.schedules.items():
            state = "on" if then.active else "off"
            yield (
                f"schedule {slug} of {title} could not be set back to {_when(then)}, {state}",
                _set_schedule(client, title, then),
            )
        for title in sorted(self.paused):
            yield f"{title} could not be paused again", _pause(client, title)
        for name in sorted(self.off):
            yield f"automation {name!r} could not be switched off again", _switch_off(client, name)


def _when(then: DeploymentSchedule) -> str:
    """Say when a schedule runs."""
    match then.schedule:
        case IntervalSchedule(interval=interval):
            return f"every {interval.total_seconds():g} s"
        case CronSchedule(cron=cron):
            return f"cron {cron!r}"
        case other:
            return f"rrule {other.rrule!r}"


async def _set_schedule(client: PrefectClient, title: str, then: DeploymentSchedule) -> None:
    deployment = await client.read_deployment_by_name(title)
    for now in deployment.schedules:
        if now.slug == then.slug:
            await client.update_deployment_schedule(
                deployment.id, now.id, active=then.active, schedule=then.schedule
            )


async def _pause(client: PrefectClient, title: str) -> None:
    deployment = await client.read_deployment_by_name(title)
    await client.pause_deployment(deployment.id)


async def _switch_off(client: PrefectClient, name: str) -> None:
    for automation in await client.read_automations():
        if automation.name == name and automation.enabled:
            await client.pause_automation(automation.id)


async def _reach(client: PrefectClient) -> None:
    deadline = time.monotonic() + _SERVER_SECONDS
    while (error := await client.api_healthcheck()) is not None:
        if time.monotonic() > deadline:
            raise B3Error(
                f"no Prefect server answers at {client.api_url} within {_SERVER_SECONDS} s: "
                f"{type(error).__name__}",
                remedy="set PREFECT_API_URL, or start one",
            )
        await asyncio.sleep(1)


async def _make_pool(client: PrefectClient, queues: Sequence[str]) -> None:
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    for queue, limit in [*((name, 1) for name in queues), ("watch", _WATCHES)]:
        try:
            made = await client.create_work_queue(queue, work_pool_name=POOL)
        except ObjectAlreadyExists:
            made = await client.read_work_queue_by_name(queue, work_pool_name=POOL)
        await client.update_work_queue(made.id, concurrency_limit=limit)


async def _watch_every(client: PrefectClient, names: Sequence[str], seconds: float) -> None:
    schedule = IntervalSchedule(interval=timedelta(seconds=seconds))
    for name in names:
        deployment = await client.read_deployment_by_name(f"watch/{name}")
        for old in deployment.schedules:
            await client.update_deployment_schedule(deployment.id, old.id, schedule=schedule)


async def _make_automation(client: PrefectClient, wanted: AutomationCore) -> None:
    """Create an automation, or bring the one of that name up to date."""
    same = [a for a in await client.read_automations() if a.name == wanted.name]
    for old in same[1:]:
        await client.delete_automation(old.id)
    if same:
        await client.update_automation(same[0].id, wanted)
    else:
        await client.create_automation(wanted)


async def _drop_automation(client: PrefectClient, name: str) -> None:
    for old in await client.read_automations():
        if old.name == name:
            await client.delete_automation(old.id)


def _zombies() -> AutomationCore:
    """Mark a run as crashed when its heartbeat stops: its process was killed, or its machine."""
    return _crashed_unless(
        {_HEARTBEAT, *_ENDED},
        after=_HEARTBEAT,
        within=_SILENCE,
        of=_OURS_AND_PARTS,  # others' runs may be silent for longer
        name="b3: no heartbeat, so crashed",
        description="A run whose process is gone would stay Running, and hold its queue, for ever.",
        message=f"no heartbeat for {_SILENCE.seconds} s: its process or machine is gone",
    )


def _stuck() -> AutomationCore:
    """Mark a run as crashed that was handed to a worker and never began: it holds its queue."""
    return _crashed_unless(
        {"prefect.flow-run.Running", _HEARTBEAT, *_ENDED},
        after="prefect.flow-run.Pending",
        within=_BEGINNING,
        of=_OURS,
        name="b3: never began, so crashed",
        description="A run whose worker died before its process began would stay Pending for ever.",
        message=f"did not begin within {_BEGINNING.seconds} s: its worker is gone",
    )


def _crashed_unless(
    events: Set[str],
    *,
    after: str,
    within: timedelta,
    of: ResourceSpecification,
    name: str,
    description: str,
    message: str,
) -> AutomationCore:
    """Mark a run as crashed if none of some events follows another in time."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            after={after},
            expect=set(events),
            match=_ANY_RUN,
            match_related=of,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


async def _notification(url: str) -> AutomationCore:
    from prefect.blocks.webhook import Webhook  # noqa: PLC0415 - a block, only where it is used

    hook = Webhook(method="POST", url=url, headers={"Content-Type": "application/json"})
    block = await hook.save("b3-notify", overwrite=True)
    return AutomationCore(
        name=_NOTIFY,
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            match=_ANY_RUN,
            match_related=_OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            CallWebhook(
                block_document_id=block,
                # Messages have quotes and newlines.
                payload='{"text": {{ (flow.name ~ "/" ~ deployment.name ~ ", run " ~ flow_run.name '
                '~ ": " ~ flow_run.state.name ~ ". " ~ flow_run.state.message ~ " " '
                "~ (flow_run|ui_url)) | tojson }}}",
            )
        ],
    )


def main(
    configs: Annotated[list[str], typer.Argument(help="CONFIG files, or recipes by name.")],
    watch_seconds: Annotated[
        float | None,
        typer.Option(
            min=5,
            envvar="B3_WATCH_SECONDS",
            help="How often `watch` looks; if absent, as often as it does, or 300.",
        ),
    ] = None,
    gpu_runs: Annotated[
        int | None,
        typer.Option(
            min=0, envvar="B3_GPU_RUNS", help="Runs that may use GPUs at once; 0: no limit."
        ),
    ] = None,
) -> None:
    """Deploy CONFIGs to the Prefect server of PREFECT_API_URL, with all that running them takes.

    B3_NOTIFY_URL, if set, gets a POST with a line of text when a run fails or crashes. What was
    switched on or off stays so.
    """
    try:
        asyncio.run(
            bootstrap(
                [config_file(named) for named in configs],
                watch_seconds=watch_seconds,
                gpu_runs=gpu_runs,
                notify=os.environ.get("B3_NOTIFY_URL"),
            )
        )
    except B3Error as error:
        for line in (error, *getattr(error, "__notes__", ())):
            typer.echo(f"b3: {line}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
