"""The flow ``watch``: look whether datasets changed, and say so."""

import contextlib
import time
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled
from pydantic import Field

from b3_core.config import PipelineSpec
from b3_core.store import ArtifactStore
from b3_core.watch import Watched
from flows.outcome import Outcome
from tasks.stages import look_at


@flow(name="watch", persist_result=False)
def watch(
    spec: PipelineSpec,
    patience_minutes: Annotated[
        float,
        Field(ge=0, description="When to say again what nobody has acted on."),
    ] = 60.0,
) -> Outcome:
    """Emit `b3.dataset.changed` for every dataset of CONFIG that changed since the last look.

    Listings are compared first; files are read only where those differ. The deployment `mine`
    waits for the event.
    """
    look_for_late_runs(runtime.flow_run.id)
    store = ArtifactStore(spec.store.root)
    store.check_writable(single_writer=spec.store.single_writer)
    watched = Watched(store, spec.name, spec.evaluate)
    now, patience = time.time(), 60 * patience_minutes
    changed = [
        dataset.name
        for dataset in spec.datasets
        if look_at(dataset, watched, now=now, patience=patience)
    ]
    return {"changed": changed}


def look_for_late_runs(run_id: str) -> None:
    """Cancel what is due of this run's schedule: this run, which has yet to look, looks for all.

    When a worker was away there is a run for every interval that it missed. Runs that somebody
    started, and those with other parameters, may look at other things and are left.
    """
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(run_id))
        if own.deployment_id is None or not own.auto_scheduled:
            return
        due = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[own.deployment_id])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
            ),
        )
        for run in due:
            if run.auto_scheduled and run.parameters == own.parameters and run.id != own.id:
                with contextlib.suppress(ObjectNotFound):  # deployed anew in this moment
                    client.set_flow_run_state(
                        run.id, Cancelled(message=f"late: {own.name} looks instead")
                    )
