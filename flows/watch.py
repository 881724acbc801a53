"""The flow ``watch``: look whether datasets changed, and say so."""

import time
from typing import Annotated

from prefect import flow
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
