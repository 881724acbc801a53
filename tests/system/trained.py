"""A training that writes down every batch it sees.

    python -m tests.system.trained FOLDER MODEL SECONDS

FOLDER gets ``store`` with a checkpoint each SECONDS and at SIGTERM, ``batches.log`` and, when it is
done, ``model``.
"""

import hashlib
import sys
from pathlib import Path

from b3_core import train
from b3_core.checkpoints import Checkpoints
from b3_core.config import TrainSpec
from b3_core.errors import StoppedError
from b3_core.loss import GroupedInfoNCE
from b3_core.store import Address, ArtifactStore
from b3_core.told import is_told, note_sigterm
from tests.core.test_train import PAIRS, small_plan

STUDENT = Address("demo", "student", "0123456789abcdef0123")
PLAN = small_plan(epochs=8)


class Written(GroupedInfoNCE):
    """The loss, with a line in the log for each batch before anything is made of it."""

    log = None

    def forward(self, sentence_features, labels=None):
        columns = list(sentence_features)
        seen = hashlib.sha256(b"".join(part["input_ids"].numpy().tobytes() for part in columns))
        self.log.write(f"{seen.hexdigest()}\n")
        self.log.flush()
        return super().forward(columns, labels)


def main(folder: Path, model: str, seconds: float) -> None:
    note_sigterm()
    train.GroupedInfoNCE = Written
    store = ArtifactStore(str(folder / "store"))
    with (folder / "batches.log").open("a", encoding="utf-8") as Written.log:
        Written.log.write("start\n")
        train.train_student(
            PAIRS,
            PLAN,
            TrainSpec(student=model, learning_rate=1e-3),
            seed=5,
            output=folder / "model",
            checkpoints=Checkpoints(store, STUDENT, seconds=seconds, stopping=is_told),
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
    except StoppedError:
        sys.exit(3)
