"""What runs tell the rest of the system: events that triggers of other deployments wait for.

Said first and remembered then, so an event comes once or more and is never lost.
"""

import contextlib
import time
from typing import Any
from uuid import uuid4

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import emit_event
from prefect.events.filters import EventFilter, EventIDFilter

from b3_core.errors import B3Error
from b3_core.store import ArtifactStore

DATASET_CHANGED = "b3.dataset.changed"
MANIFESTS_PUBLISHED = "b3.manifests.published"
STUDENTS_TRAINED = "b3.students.trained"

_DELIVERY_SECONDS = 60


def in_deployment() -> bool:
    """Tell whether this flow run was started by a deployment, not by a command or another flow."""
    return runtime.deployment.id is not None and runtime.flow_run.parent_flow_run_id is None


def emit(event: str, *, resource: str, pipeline: str, payload: dict[str, Any]) -> None:
    """Emit an event and wait until the server has it.

    Parameters
    ----------
    resource
        What it is about: ``dataset.laptop.faq``; becomes ``b3.dataset.laptop.faq``.
    pipeline
        CONFIG's name, for triggers to match.

    Raises
    ------
    B3Error
        The server does not have it within a minute.
    """
    identity = uuid4()
    named = {"prefect.resource.id": f"b3.{resource}", "b3.pipeline": pipeline}
    emit_event(event, named, payload=payload, id=identity)
    wanted = EventFilter(id=EventIDFilter(id=[identity]))
    deadline = time.monotonic() + _DELIVERY_SECONDS
    with get_client(sync_client=True) as client:
        while not _has(client, wanted):
            if time.monotonic() > deadline:
                raise B3Error(
                    f"the Prefect server has not taken the event {event} of {resource}",
                    remedy="look at the server's log; the next run says it again",
                )
            time.sleep(0.5)


def _has(client: SyncPrefectClient, wanted: EventFilter) -> bool:
    """Ask the server whether it has an event; one that is just starting has not yet."""
    with contextlib.suppress(httpx.TransportError):
        return bool(client.read_events(filter=wanted, limit=1).events)
    return False


def announce(event: str, store: ArtifactStore, *, pipeline: str, uris: list[str]) -> None:
    """Say what a deployment's run has made, unless just that was said last time."""
    if not in_deployment():
        return
    note = f"said/{pipeline}/{event}"
    if store.note(note) != {"uris": uris}:
        emit(event, resource=f"pipeline.{pipeline}", pipeline=pipeline, payload={"uris": uris})
        store.set_note(note, {"uris": uris})
