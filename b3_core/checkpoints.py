"""Where a training that was killed goes on from: its last checkpoint, kept as an artifact.

    folder of the trainer -> artifact <dataset>/checkpoint/<student and step> -> note: the last one
    a new start           -> note -> artifact -> folder

A checkpoint is whole or absent and hashed like everything else in the store. It is kept now and
then, and at once where a training is told to end. Which is the last is in a note: if that is lost,
training begins anew, and ends with the same student.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from b3_core.artifacts import Address
from b3_core.store import ArtifactStore

STAGE = "checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one student; there is one at most when its training is at rest.

    Parameters
    ----------
    student
        Where the student will be when it is trained.
    seconds
        How long to train between two.
    stopping
        Says whether the training is to end now, and to keep the step it is at. Asked once a step.
    """

    store: ArtifactStore
    student: Address
    seconds: float
    stopping: Callable[[], bool] = lambda: False

    @contextlib.contextmanager
    def last(self) -> Iterator[Path | None]:
        """Lay the last checkpoint out in a temporary folder; None if there is none."""
        address = self._noted()
        artifact = None if address is None else self.store.find(address)
        if artifact is None:
            yield None
            return
        with artifact.folder(STAGE) as folder:
            yield folder

    def keep(self, folder: Path, step: int) -> None:
        """Move the checkpoint in ``folder`` into the store, and let go of the one before it."""
        before = self._noted()
        address = Address.of(
            self.student.dataset,
            STAGE,
            version=VERSION,
            settings={"step": step},
            inputs={"student": self.student.fingerprint},
        )
        lineage = {"student": self.student.fingerprint}
        with self.store.draft(address, lineage=lineage, settings={"step": step}) as draft:
            for file in sorted(folder.iterdir()):
                shutil.move(file, draft.path(f"{STAGE}/{file.name}"))
        self.store.set_note(self._name, {"fingerprint": address.fingerprint})
        if before is not None and before != address:
            self.store.discard(before)

    def clear(self) -> None:
        """Let go of what is left when the student is there."""
        address = self._noted()
        if address is not None:
            self.store.discard(address)
            self.store.drop_note(self._name)

    @property
    def _name(self) -> str:
        return f"{STAGE}-{self.student.fingerprint}"

    def _noted(self) -> Address | None:
        note = self.store.note(self._name)
        return None if note is None else Address(self.student.dataset, STAGE, note["fingerprint"])
