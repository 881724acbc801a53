"""What a student made of benchmarks is not made again, and is never taken for another's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from b3_core.artifacts import Address
from b3_core.benchmarks import evaluate_student
from b3_core.config import BenchmarkSpec, TrainSpec
from b3_core.evaluate import encoder as encoder_module
from b3_core.evaluate.benchmark import Benchmark, BenchmarkResult, Prompts, run_benchmark
from b3_core.garbage import find_orphans, remove
from b3_core.kept import KeptVectors
from b3_core.store import ArtifactStore
from tests import benchmark_folders as folders
from tests import tiny
from tests.benchmark_folders import ColourEncoder

STUDENT = Address("pictures", "student", "0123456789abcdef0123")
MUCH = 10**9


def put_student(store: ArtifactStore, weights: str = "weights") -> None:
    with store.draft(STUDENT, lineage={}, settings={}) as draft:
        draft.write_json("model/weights.json", weights)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    made = ArtifactStore(str(tmp_path / "store"))
    put_student(made)
    return made


def memory(store: ArtifactStore, most_bytes: int = MUCH, **settings: object) -> KeptVectors:
    return KeptVectors(store, STUDENT, settings, most_bytes)


def metrics(result: BenchmarkResult) -> list[dict[str, float]]:
    assert all(score.metrics for score in result.scores)
    return [score.metrics for score in result.scores]


def test_a_second_run_embeds_nothing_and_scores_the_same(
    store: ArtifactStore, tmp_path: Path
) -> None:
    folders.plain(tmp_path / "own", "image")
    spec = Benchmark("images", str(tmp_path / "own"))
    plain, first, second, other = (ColourEncoder() for _ in range(4))
    result = run_benchmark(spec, first, memory=memory(store))
    assert first.asked
    again = run_benchmark(spec, second, memory=memory(store))
    assert second.asked == []
    assert metrics(again) == metrics(result) == metrics(run_benchmark(spec, plain))
    # The same corpus under other names is known as well.
    shutil.copytree(tmp_path / "own", tmp_path / "elsewhere")
    moved = run_benchmark(
        Benchmark("images", str(tmp_path / "elsewhere")), other, memory=memory(store)
    )
    assert other.asked == []
    assert metrics(moved) == metrics(result)


def test_vectors_come_back_bit_for_bit(store: ArtifactStore) -> None:
    rng = np.random.default_rng(0)
    vector_UD = rng.normal(size=(7, 5)).astype(np.float32)
    keys = [rng.bytes(16).hex() for _ in range(7)]
    one = memory(store)
    assert one.take(keys) == {}
    one.keep(keys[:3], vector_UD[:3])
    one.keep(keys[3:], vector_UD[3:])
    for each in (one, memory(store)):
        found = each.take([*keys[::-1], "ff" * 16, keys[2]])
        assert list(found) != [] and set(found) == set(keys)
        np.testing.assert_array_equal(np.stack([found[key] for key in keys]), vector_UD)


def test_another_prompt_picture_setting_or_model_is_not_what_is_kept(
    store: ArtifactStore, tmp_path: Path
) -> None:
    folders.plain(tmp_path / "own", "image")
    spec = Benchmark("images", str(tmp_path / "own"))

    def asked(spec: Benchmark = spec, **settings: object) -> list[tuple[str, object]]:
        encoder = ColourEncoder()
        run_benchmark(spec, encoder, memory=memory(store, **settings))
        return encoder.asked

    everything = len(asked())
    prompted = Benchmark(
        "images", spec.folder, prompts=Prompts(text_query="find ", text_target="find ")
    )
    assert {prompt for prompt, _ in asked(prompted)} == {"find "}
    assert len(asked(frames=2)) == everything
    folders.picture(tmp_path / "own" / "3.png", "magenta")
    assert [item.file for _, item in asked()] == ["3.png"]
    store.discard(STUDENT)
    put_student(store, "others")
    assert len(asked()) == everything


def test_a_run_that_is_killed_has_kept_what_it_did(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(ColourEncoder):
        def encode_items(self, items, root, *, prompt="", progress=None):
            if len(self.asked) >= 8:
                raise KeyboardInterrupt
            return super().encode_items(items, root, prompt=prompt)

    monkeypatch.setattr(encoder_module, "_CHUNK", 4)
    folders.plain(tmp_path / "own", "image")
    spec = Benchmark("images", str(tmp_path / "own"))
    dying, after, whole = Dying(), ColourEncoder(), ColourEncoder()
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(spec, dying, memory=memory(store))
    assert len(dying.asked) >= 8
    result = run_benchmark(spec, after, memory=memory(store))
    assert metrics(result) == metrics(run_benchmark(spec, whole))
    assert len(after.asked) == len(whole.asked) - len(dying.asked) > 0


def test_no_more_is_kept_than_there_is_space_for(store: ArtifactStore, tmp_path: Path) -> None:
    kept = memory(store, most_bytes=100)
    kept.keep(["aa" * 16], np.zeros((1, 20), np.float32))
    kept.keep(["bb" * 16], np.zeros((1, 20), np.float32))  # 80 bytes each
    assert set(kept.take(["aa" * 16, "bb" * 16])) == {"aa" * 16}
    assert set(memory(store).take(["aa" * 16, "bb" * 16])) == {"aa" * 16}


def test_vectors_go_when_their_student_is_gone(store: ArtifactStore) -> None:
    kept = memory(store)
    kept.keep(["aa" * 16], np.zeros((1, 20), np.float32))
    assert find_orphans(store, older_than=-1) == []
    store.discard(STUDENT)
    orphans = find_orphans(store, older_than=-1)
    assert {orphan.why for orphan in orphans} == {"vectors of a student that is gone"}
    assert len(orphans) == 3  # keys, vectors, record
    remove(store, orphans)
    assert find_orphans(store, older_than=-1) == []


def test_a_student_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.clip(folders.COLOURS, tmp_path / "clip")
    store = ArtifactStore(str(tmp_path / "store"))
    with store.draft(STUDENT, lineage={}, settings={}) as draft:
        for file in made.iterdir():
            shutil.copy(file, draft.path(f"model/{file.name}"))
    folders.plain(tmp_path / "own", "image")
    calls = []
    encode = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    spec = BenchmarkSpec(name="images", folder=str(tmp_path / "own"))
    results, counts = [], []
    for most_bytes in (0, MUCH, MUCH):
        calls.clear()
        results.append(evaluate_student(STUDENT, spec, TrainSpec(), store, most_bytes=most_bytes))
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0 == counts[2]
    assert metrics(results[0]) == metrics(results[1]) == metrics(results[2])
