"""Which datasets of a CONFIG are not what they were when that was last said.

    listing as remembered -> unchanged, no file is read
      -> content as remembered -> unchanged, the new listing is remembered
        -> changed: the caller says so, then has it remembered

In that order: a process killed between the two says it again, so a change is said once or more and
never lost. A change that was said long ago, and that nobody has acted on since, is said again.
"""

from dataclasses import dataclass

from b3_core.config import DatasetSpec, EvalSpec
from b3_core.dataset_stage import Pairs
from b3_core.reading import media_look, uris_of
from b3_core.source import source_listing
from b3_core.store import ArtifactStore


@dataclass(frozen=True)
class Change:
    """A dataset whose files hold something new."""

    dataset: str
    listing: str
    """What its files look like, as :func:`b3_core.source.source_listing` has it."""
    content: str
    """What identifies their bytes: the source of its ``pairs`` stage."""


@dataclass(frozen=True)
class Watched:
    """The datasets of one CONFIG, and what is remembered of them in its store.

    Parameters
    ----------
    pipeline
        CONFIG's name: two CONFIGs on one store remember on their own.
    evaluate
        CONFIG's section; with the dataset's own it says which pairs are read from the files.
    """

    store: ArtifactStore
    pipeline: str
    evaluate: EvalSpec

    def look(self, dataset: DatasetSpec, *, now: float, patience: float) -> Change | None:
        """Return what changed in a dataset since that was last remembered.

        Parameters
        ----------
        now
            Seconds since the epoch.
        patience
            Seconds after which a change that nobody acted on (its pairs were never read into the
            store) counts as one again.

        Raises
        ------
        InputError
            The dataset's files are not there or cannot be read.
        """
        looks = ((source_listing(uri), media_look(dataset, uri)) for uri in uris_of(dataset))
        listing = " ".join(look for both in looks for look in both if look)
        known = self.store.note(self._note(dataset.name))
        said = now if known is None else known["said"]
        waiting = now - said < patience
        if known is not None and known["listing"] == listing and (known["acted"] or waiting):
            return None
        pairs = Pairs.of(dataset, self.evaluate)
        change = Change(dataset.name, listing, pairs.source)
        acted = self.store.find(pairs.address) is not None
        # What was read before anybody watched is no change; what went back to an old state is one.
        new = not acted if known is None else known["content"] != change.content
        if new or not (acted or waiting):
            return change
        self.remember(change, now=said, acted=acted)
        return None

    def remember(self, change: Change, *, now: float, acted: bool = False) -> None:
        """Note that a change was said at ``now`` (seconds since the epoch)."""
        self.store.set_note(
            self._note(change.dataset),
            {"listing": change.listing, "content": change.content, "said": now, "acted": acted},
        )

    def _note(self, dataset: str) -> str:
        return f"watch/{self.pipeline}/{dataset}"
