"""What a run of ``watch`` does about others of its schedule that are late."""

from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.flow_engine import run_flow

from b3_core.config import load_config
from flows.watch import look_for_late_runs, watch
from tasks import events


class Away:
    """A deployment that no worker took runs of: six are due, others are ahead."""

    def __init__(self, client):
        self.client = client
        schedule = IntervalSchedule(interval=timedelta(minutes=5))
        self.id = client.create_deployment(
            client.create_flow(watch),
            name="away",
            parameters={"spec": {"name": "away"}},
            schedules=[DeploymentScheduleCreate(schedule=schedule, active=True)],
        )
        start = datetime.now(UTC) - timedelta(minutes=30)
        client.request(
            "POST",
            "/deployments/{id}/schedule",
            path_params={"id": self.id},
            json={"start_time": start.isoformat(), "min_runs": 9, "max_runs": 9},
        )

    def runs(self):
        """Runs in the order in which they are due, with the states they are in."""
        mine = DeploymentFilter(id=DeploymentFilterId(any_=[self.id]))
        found = self.client.read_flow_runs(deployment_filter=mine)
        return sorted(found, key=lambda run: run.expected_start_time)

    def states(self):
        return [run.state_type.value for run in self.runs() if run.auto_scheduled]

    def asked(self, **parameters):
        """A run that a person starts; it is due, too."""
        changed = {"spec": {"name": "away"}, **parameters}
        return self.client.create_flow_run_from_deployment(self.id, parameters=changed)


@pytest.fixture
def away(served):
    with get_client(sync_client=True) as client:
        made = Away(client)
        yield made
        client.delete_deployment(made.id)


def test_one_run_looks_for_all_that_are_late(away):
    asked = away.asked(patience_minutes=0)
    assert away.states() == ["SCHEDULED"] * 9
    oldest = away.runs()[0]
    look_for_late_runs(str(oldest.id))
    assert away.states() == ["SCHEDULED", *["CANCELLED"] * 5, *["SCHEDULED"] * 3]
    cancelled = away.runs()[1]
    assert cancelled.state.message == f"late: {oldest.name} looks instead"
    assert away.client.read_flow_run(asked.id).state_type.value == "SCHEDULED"


def test_a_run_that_a_person_starts_looks_for_itself(away):
    look_for_late_runs(str(away.asked(patience_minutes=0).id))
    assert away.states() == ["SCHEDULED"] * 9


def test_a_late_run_with_other_parameters_looks_for_itself(away):
    oldest, other = away.runs()[0], away.runs()[3]
    away.client.update_flow_run(other.id, parameters={"spec": {"name": "other"}})
    look_for_late_runs(str(oldest.id))
    late = [*["CANCELLED"] * 2, "SCHEDULED", *["CANCELLED"] * 2]
    assert away.states() == ["SCHEDULED", *late, *["SCHEDULED"] * 3]


def test_the_run_that_stands_for_others_looks(away, write_config, monkeypatch):
    said = []
    monkeypatch.setattr(events, "emit", lambda event, **_: said.append(event))
    spec = load_config(write_config())
    found = run_flow(watch, flow_run=away.runs()[0], parameters={"spec": spec})
    assert (found["changed"], said) == (["faq"], [events.DATASET_CHANGED])
    assert away.states() == ["COMPLETED", *["CANCELLED"] * 5, *["SCHEDULED"] * 3]
