"""What an operator switched survives a bootstrap that fails; the first error is the one told."""

import asyncio
import itertools
import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import typer
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound

from b3_core.errors import B3Error
from deployments import bootstrap as module

ZOMBIES = module._zombies().name


def interval(seconds):
    return IntervalSchedule(interval=timedelta(seconds=seconds))


class Server:
    """What bootstrap asks a server for, in memory; calls that are named in ``broken`` fail."""

    api_url = "memory"

    def __init__(self):
        self.deployments, self.automations, self.broken = {}, {}, set()
        self._ids = itertools.count()

    def deploy(self, config, name):
        """Deploy as ``prefect deploy`` does: schedules are those of prefect.yaml."""
        for flow, slug, schedule in (
            ("watch", "poll", interval(300)),
            ("pipeline", "weekly", CronSchedule(cron="0 3 * * 0")),
        ):
            title = f"{flow}/{name}"
            made = DeploymentSchedule(slug=slug, schedule=schedule, active=flow == "watch")
            self.deployments[title] = SimpleNamespace(id=title, paused=False, schedules=[made])
        self.automations |= {f"mine {name}": SimpleNamespace(enabled=True)}

    def said(self, name):
        """Interval of watch, cron of pipeline, which of them are on, is pipeline paused."""
        watch, pipeline = (self.deployments[f"{flow}/{name}"] for flow in ("watch", "pipeline"))
        polls, weekly = watch.schedules[0], pipeline.schedules[0]
        every = polls.schedule.interval.total_seconds()
        return every, weekly.schedule.cron, polls.active, weekly.active, pipeline.paused

    def _try(self, *call):
        if self.broken & {call[0], call}:
            raise RuntimeError(f"{' '.join(map(str, call))} is broken")

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def api_healthcheck(self):
        await asyncio.sleep(0)

    async def read_work_pool(self, _):
        await asyncio.sleep(0)

    async def create_work_queue(self, name, work_pool_name):
        return SimpleNamespace(id=name)

    async def update_work_queue(self, *_, **__):
        await asyncio.sleep(0)

    async def read_deployment_by_name(self, title):
        await asyncio.sleep(0)
        if title not in self.deployments:
            raise ObjectNotFound(None)
        return self.deployments[title]

    async def update_deployment_schedule(self, title, schedule_id, **changes):
        self._try("update_deployment_schedule", title)
        (found,) = [each for each in self.deployments[title].schedules if each.id == schedule_id]
        for key, value in changes.items():
            setattr(found, key, value)

    async def pause_deployment(self, title):
        self.deployments[title].paused = True

    async def read_automations(self):
        return [
            SimpleNamespace(id=name, name=name, enabled=each.enabled)
            for name, each in self.automations.items()
        ]

    async def pause_automation(self, name):
        self.automations[name].enabled = False

    async def create_automation(self, wanted):
        self._try("create_automation", wanted.name)
        self.automations[wanted.name] = SimpleNamespace(enabled=True)

    async def update_automation(self, name, _):
        self._try("update_automation", name)
        self.automations[name] = SimpleNamespace(enabled=True)


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setattr(module, "get_client", lambda: made)
    monkeypatch.setattr(module, "PREFECT_API_URL", SimpleNamespace(value=lambda: "memory"))
    monkeypatch.setattr(module, "deploy", made.deploy)
    return made


@pytest.fixture
def configs(tmp_path):
    files = []
    for name in ("one", "two"):
        dataset = "{name: a, uri: a.parquet, query: q, positive: p}"
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"name: {name}\ndatasets: [{dataset}]")
    return files


CHOSEN = (777.0, "0 5 * * *", False, True, True)


@pytest.fixture
def switched(server, configs):
    """The server after a bootstrap, and an operator who switched whatever there is."""
    run(configs)
    for name in ("one", "two"):
        watch, pipeline = (server.deployments[f"{flow}/{name}"] for flow in ("watch", "pipeline"))
        watch.schedules[0].schedule, watch.schedules[0].active = interval(777), False
        pipeline.schedules[0].schedule = CronSchedule(cron="0 5 * * *")
        pipeline.schedules[0].active, pipeline.paused = True, True
        server.automations[f"mine {name}"].enabled = False
    server.automations[ZOMBIES].enabled = False
    return server


def run(configs, watch_seconds=None):
    asyncio.run(module.bootstrap(configs, watch_seconds=watch_seconds, gpu_runs=None, notify=None))


def enabled(server):
    return {name for name, each in server.automations.items() if each.enabled}


@pytest.mark.parametrize("watch_seconds", [None, 60])
def test_a_bootstrap_leaves_what_was_chosen(switched, configs, watch_seconds):
    run(configs, watch_seconds)
    for name in ("one", "two"):
        assert switched.said(name) == (watch_seconds or 777, *CHOSEN[1:])
    assert enabled(switched) == {module._stuck().name}


def second_fails(server, monkeypatch):
    def deploy(config, name):
        if name == "two":
            raise B3Error("prefect deploy failed for two")
        server.deploy(config, name)

    monkeypatch.setattr(module, "deploy", deploy)


@pytest.mark.parametrize("watch_seconds", [None, 60])
def test_a_deployment_that_fails_loses_no_schedule(switched, configs, monkeypatch, watch_seconds):
    second_fails(switched, monkeypatch)
    with pytest.raises(B3Error, match="prefect deploy failed for two"):
        run(configs, watch_seconds)
    assert switched.said("one") == switched.said("two") == CHOSEN


def test_what_can_be_set_again_is_and_the_first_error_is_told(switched, configs, monkeypatch):
    second_fails(switched, monkeypatch)
    switched.broken = {("update_deployment_schedule", "watch/one")}
    with pytest.raises(B3Error, match="prefect deploy failed for two") as raised:
        run(configs)
    assert raised.value.__notes__ == [
        "schedule poll of watch/one could not be set back to every 777 s, off: "
        "update_deployment_schedule watch/one is broken; do it in the UI"
    ]
    assert switched.said("one") == (300, CHOSEN[1], True, *CHOSEN[3:])
    assert not enabled(switched) & {"mine one", "mine two"}


def test_what_cannot_be_set_again_is_an_error_of_its_own(switched, configs):
    switched.broken = {"update_deployment_schedule"}
    with pytest.raises(B3Error, match="schedule poll of watch/one .* every 777 s, off") as raised:
        run(configs)
    assert len(raised.value.__notes__) == 3
    assert any("cron '0 5 * * *', on" in note for note in raised.value.__notes__)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_automations_are_off_again_though_one_cannot_be_made(switched, configs):
    switched.broken = {("update_automation", module._stuck().name)}
    with pytest.raises(RuntimeError):
        run(configs)
    assert ZOMBIES not in enabled(switched)


def test_an_interrupted_deployment_loses_nothing(switched, configs, monkeypatch):
    def deploy(config, name):
        switched.deploy(config, name)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: `prefect deploy` ends of it too
        raise B3Error("prefect deploy failed")

    monkeypatch.setattr(module, "deploy", deploy)
    with pytest.raises(KeyboardInterrupt):
        run(configs)
    assert switched.said("one") == CHOSEN


def test_every_error_is_a_line(switched, configs, monkeypatch, capsys):
    second_fails(switched, monkeypatch)
    switched.broken = {("update_deployment_schedule", "watch/one")}
    with pytest.raises(typer.Exit) as ended:
        module.main([str(config) for config in configs])
    assert ended.value.exit_code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "b3: prefect deploy failed for two"
    assert second.startswith("b3: schedule poll of watch/one could not be set back")
