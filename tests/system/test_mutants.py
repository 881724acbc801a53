"""A thousand mutated manifests: each refused for what is wrong with it, in one line.

By ``b3 verify``, and by the check that the flow ``train`` begins with.
"""

import json
import re
from collections import Counter

import numpy as np
import pytest

from b3_core.errors import B3Error
from b3_core.manifest import Manifest, verify, verify_before_training
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


def says(name, message):
    """Tell whether a refusal is one line that says what is wrong with a mutant of a kind."""
    return "\n" not in message and re.search(KINDS[name][0], message)


@pytest.mark.parametrize("datasets", [1, 2])
def test_every_mutant_is_refused(datasets, tmp_path, monkeypatch):
    sound = Sound(tmp_path, monkeypatch, datasets=datasets)
    whole = sound.write(sound.parts())  # nothing but the change is wrong with a mutant
    assert verify(whole)
    verify_before_training([whole])
    rng = np.random.default_rng(datasets)
    names = kinds(sound)
    refused, in_each_rank, said, wrong = Counter(), Counter(), {}, []
    for number in range(MUTANTS):
        name = names[number % len(names)]
        artifact = mutant(sound, name, rng)
        try:
            messages = [
                refusal(verify, artifact),
                refusal(lambda artifact: verify_before_training([artifact]), artifact),
            ]
            training = refusal(
                lambda artifact: Manifest.load(artifact).check(sound.tables, where=artifact.uri),
                artifact,
            )
        except Exception as error:  # noqa: BLE001 - an error of its own is what must not come
            wrong.append((name, repr(error)))
            continue
        if not all(message and says(name, message) for message in messages):
            wrong.append((name, messages))
            continue
        refused[name] += 1
        in_each_rank[name] += training is not None
        said[name] = messages[0].replace(sound.store.root, "ROOT")
    figures = {
        "datasets": datasets,
        "mutants": MUTANTS,
        "refused_by_verify_and_by_train": refused.total(),
        "refused_again_by_every_rank": in_each_rank.total(),
        "kinds": {
            name: {"refused": n, "by_every_rank": in_each_rank[name], "said": said[name]}
            for name, n in refused.items()
        },
    }
    print(json.dumps(figures))
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)
    assert refused.total() == MUTANTS
