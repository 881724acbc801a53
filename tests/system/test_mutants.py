"""A thousand mutated manifests: each refused for what is wrong with it, in one line."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from b3_core.errors import B3Error
from b3_core.manifest import Manifest, verify
from tests.mutants import KINDS, Sound, kinds, mutant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MUTANTS = 500  # of each of the two manifests


def refusal(check, artifact):
    """Return what an artifact is refused with; None if it is not. Other errors are the test's."""
    try:
        check(artifact)
    except B3Error as error:
        return str(error)
    return None


@pytest.mark.parametrize("datasets", [1, 2])
def test_every_mutant_is_refused(datasets, tmp_path, monkeypatch):
    sound = Sound(tmp_path, monkeypatch, datasets=datasets)
    assert verify(sound.write(sound.parts()))  # nothing but the change is wrong with a mutant
    rng = np.random.default_rng(datasets)
    names = kinds(sound)
    refused, before_training, said, wrong = Counter(), Counter(), {}, []
    for number in range(MUTANTS):
        name = names[number % len(names)]
        artifact = mutant(sound, name, rng)
        try:
            message = refusal(verify, artifact)
            training = refusal(
                lambda artifact: Manifest.load(artifact).check(sound.tables, where=artifact.uri),
                artifact,
            )
        except Exception as error:  # noqa: BLE001 - an error of its own is what must not come
            wrong.append((name, repr(error)))
            continue
        if message is None or "\n" in message or not re.search(KINDS[name][0], message):
            wrong.append((name, message))
            continue
        refused[name] += 1
        before_training[name] += training is not None
        said[name] = message.replace(sound.store.root, "ROOT")
    figures = {
        "datasets": datasets,
        "mutants": MUTANTS,
        "refused": refused.total(),
        "refused_by_training_alone": before_training.total(),
        "kinds": {
            name: {"refused": n, "by_training": before_training[name], "said": said[name]}
            for name, n in refused.items()
        },
    }
    print(json.dumps(figures))
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)
    assert refused.total() == MUTANTS
