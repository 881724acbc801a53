"""Students of several architectures, whole or by adapters, real code paths and random weights."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from b3_core import teacher, train
from b3_core.checkpoints import Checkpoints
from b3_core.config import ComputeSpec, LoraSpec, TeacherSpec, TrainSpec
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.negatives import Negatives
from b3_core.store import ArtifactStore
from b3_core.student import build_student, merge_adapters
from tests import tiny
from tests.conftest import topic_table
from tests.core.test_incremental import Mining
from tests.core.test_loss import oracle
from tests.core.test_resume import STUDENT, Stopped
from tests.core.test_sampler import make_plan
from tests.core.test_slots import triplets
from tests.core.test_train import PAIRS, PLAN, TEXTS

WORDS = [text for pair in TEXTS for text in pair] + ["find:", "label:", "it", "is"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        build.__name__: build(WORDS, tmp_path_factory.mktemp(build.__name__))
        for build in (tiny.bert, tiny.clip, tiny.qwen2)
    }


def run(spec, output, **settings):
    return train.train_student(PAIRS, PLAN, spec, seed=5, output=output, **settings)


@pytest.mark.parametrize(
    ("architecture", "lora"),
    [
        ("clip", None),
        ("qwen2", LoraSpec(r=2)),
        pytest.param("bert", None, marks=pytest.mark.slow),
        pytest.param("qwen2", None, marks=pytest.mark.slow),
        pytest.param("bert", LoraSpec(r=2), marks=pytest.mark.slow),
        pytest.param("clip", LoraSpec(r=2), marks=pytest.mark.slow),
    ],
)
def test_a_student_is_trained_and_loads_as_any_model_does(architecture, lora, models, tmp_path):
    folder = models[architecture]
    spec = TrainSpec(student=str(folder), learning_rate=1e-2, lora=lora)
    result = run(spec, tmp_path / "model", compute=ComputeSpec(gradient_checkpointing=True))
    assert np.isfinite([loss for _, loss in result.loss]).all()
    before = teacher.load_model(str(folder), device="cpu").encode(WORDS[:4])
    student = SentenceTransformer(str(tmp_path / "model"), device="cpu", local_files_only=True)
    after = student.encode(WORDS[:4])
    assert np.isfinite(after).all() and not np.allclose(before, after)
    assert not list((tmp_path / "model").rglob("*adapter*"))  # merged: nothing beside the weights


def test_merged_weights_are_the_adapters(models, tmp_path):
    spec = TrainSpec(student=str(models["qwen2"]), lora=LoraSpec(r=2, dropout=0))
    model = build_student(spec, seed=0)
    trained = [name for name, part in model.named_parameters() if part.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    # Seeded: a few draws in a hundred have attention so steep that rounding alone is seen.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_B" in name:  # zero at first: adapters start as nothing
                part.copy_(torch.empty(part.shape).normal_(generator=generator))
    with_adapters = model.encode(WORDS[:5])
    merge_adapters(model)
    np.testing.assert_allclose(model.encode(WORDS[:5]), with_adapters, rtol=1e-4, atol=1e-5)


def test_adapters_go_where_they_are_told(models):
    spec = TrainSpec(student=str(models["qwen2"]), lora=LoraSpec(targets=("q_proj", "v_proj")))
    model = build_student(spec, seed=0)
    trained = {name for name, part in model.named_parameters() if part.requires_grad}
    assert len(trained) == 2 * 2 * 2  # two layers, two targets, A and B
    assert all(".q_proj." in name or ".v_proj." in name for name in trained)


@pytest.mark.parametrize(
    ("student", "targets", "message"),
    [
        ("qwen2", ("no_such",), r"train.lora.targets \['no_such'\] fit no layer of the student"),
        ("static", (), "the student is no transformer whose layers could be adapted"),
    ],
)
def test_adapters_that_cannot_be(student, targets, message, models):
    spec = TrainSpec(
        student=str(models.get(student, student)), lora=LoraSpec(targets=targets), dim=8
    )
    with pytest.raises(InputError, match=message):
        build_student(spec, seed=0)


def test_the_last_token_is_pooled_and_saved(models, tmp_path):
    folder = str(models["qwen2"])
    last = teacher.load_model(folder, pooling="lasttoken", device="cpu")
    tokens = last.tokenizer(WORDS[:3], padding=True, return_tensors="pt")
    hidden = last[0].model(**tokens).last_hidden_state
    ends = tokens["attention_mask"].sum(dim=1) - 1
    expected = hidden[torch.arange(3), ends].detach().numpy()
    np.testing.assert_allclose(last.encode(WORDS[:3]), expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(teacher.load_model(folder, device="cpu").encode(WORDS[:3]), expected)
    encoder = teacher.Teacher(TeacherSpec(model=folder, pooling="lasttoken"), device="cpu")
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(WORDS[:3]), unit, rtol=1e-4, atol=1e-5)
    run(TrainSpec(student=folder, pooling="lasttoken"), tmp_path / "model")
    loaded = teacher.load_model(str(tmp_path / "model"), device="cpu")
    assert loaded[1].pooling_mode == "lasttoken"


def test_pooling_where_there_is_nothing_to_pool(models):
    with pytest.raises(InputError, match="pools no token vectors, but pooling is 'cls'"):
        teacher.load_model(str(models["clip"]), pooling="cls", device="cpu")


@pytest.mark.parametrize("student", ["tokens", "static", "glyphs"])
def test_pooling_for_a_packaged_student_is_refused(student):
    with pytest.raises(InputError, match=f"model {student} pools no token vectors"):
        build_student(TrainSpec(student=student, pooling="mean", dim=8), seed=0)


@pytest.fixture
def halved(models, tmp_path):
    """The same BERT with its weights stored in 16 bits."""
    model = teacher.load_model(str(models["bert"]), device="cpu").bfloat16()
    model.save_pretrained(str(tmp_path / "halved"))
    return str(tmp_path / "halved")


def types(model):
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_stored_in_16_bits_train_in_32(precision, halved):
    spec = TrainSpec(student=halved, precision=precision)
    assert types(build_student(spec, seed=0)) == {torch.float32}
    beside = spec.model_copy(update={"lora": LoraSpec(r=2)})
    model = build_student(beside, seed=0)
    frozen = {p.dtype for name, p in model.named_parameters() if "lora" not in name}
    assert frozen == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert types(teacher.Teacher(TeacherSpec(model=halved)).model) == {torch.float32}


def test_adapters_are_merged_in_32_bits(halved):
    spec = TrainSpec(student=halved, precision="bf16", lora=LoraSpec(r=2))
    model = build_student(spec, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    expected = model.float().encode(WORDS[:4])
    merge_adapters(model)
    assert types(model) == {torch.float32}
    np.testing.assert_allclose(model.encode(WORDS[:4]), expected, atol=1e-5)


def test_adapters_go_on_beside_weights_as_stored(halved, tmp_path):
    lora = LoraSpec(r=2, dropout=0)
    spec = TrainSpec(student=halved, precision="bf16", lora=lora, learning_rate=1e-2)
    file = tmp_path / "adapters.safetensors"
    run(spec, tmp_path / "model", adapters=file, span=(0.0, 0.5))
    again = build_student(spec, seed=6, initial=file)
    frozen = {p.dtype for name, p in again.named_parameters() if "lora" not in name}
    assert frozen == {torch.bfloat16}
    merged = teacher.load_model(str(tmp_path / "model"), device="cpu").encode(WORDS[:4])
    np.testing.assert_allclose(again.float().encode(WORDS[:4]), merged, atol=1e-5)
    assert not np.allclose(build_student(spec, seed=6).float().encode(WORDS[:4]), merged, atol=1e-3)
    more = run(spec, tmp_path / "more", initial=file, span=(0.5, 1.0))
    assert np.isfinite([loss for _, loss in more.loss]).all()
    others = spec.model_copy(update={"lora": LoraSpec(r=3)})
    with pytest.raises(CorruptArtifactError, match="adapters of other layers"):
        build_student(others, seed=6, initial=file)


@pytest.mark.slow  # mines twice
def test_a_student_with_adapters_goes_on_after_a_refresh(halved, tmp_path):
    phases = [{"epochs": 1}, {"epochs": 1, "refresh": True}]
    mining = Mining(
        tmp_path,
        train={"student": halved, "lora": {"r": 2}, "precision": "bf16"},
        batches={"batch_size": 8, "curriculum": phases},
    )
    pq.write_table(topic_table(60), mining.file)
    plan = mining.plan()
    for leg in plan.legs:
        made = (*leg.vectors, *leg.ranks, *leg.graphs, *leg.communities, *leg.manifests.values())
        for stage in (*(shard for each in leg.vectors for shard in each.shards), *made):
            stage.run(mining.store)
        (student,) = leg.students.values()
        student.run(mining.store)
    first, last = (mining.store.get(next(iter(leg.students.values())).address) for leg in plan.legs)
    assert last.record["lineage"]["initial"] == f"adapters:{first.address.fingerprint}"
    kept = ["adapters.safetensors" in student.files for student in (first, last)]
    assert kept == [True, False]  # nothing goes on from the last


@pytest.mark.parametrize("kind", ["static", "qwen2"])
def test_hard_negatives_and_groups_are_in_the_loss(kind, models, tmp_path):
    """The first loss is the formula's, over what the slots of the first batch hold."""
    hard = np.random.default_rng(1).integers(-1, 12, (*PLAN.row_SB.shape, 2), np.int32)
    spec = TrainSpec(
        student=str(models.get(kind, kind)), dim=16, temperature=0.1, symmetric=kind == "qwen2"
    )
    prompts = [("find: ", "it is "), ("", "label: ")]
    result = run(spec, tmp_path, negatives=Negatives(hard), prompts=prompts)
    table = PAIRS[PLAN.dataset_S[0]]
    query_prompt, positive_prompt = prompts[PLAN.dataset_S[0]]
    rows = PLAN.row_SB[0]
    places = np.column_stack([rows, np.where(hard[0] < 0, rows[:, None], hard[0])])
    groups = table.group_N[places]
    groups[:, 1:][hard[0] < 0] = -1
    positives = [positive_prompt + text for text in table.positives.to_pylist()]
    queries = [query_prompt + text for text in table.queries.to_pylist()]
    model = build_student(spec, seed=5)
    vectors = [model.encode([queries[row] for row in rows])]
    vectors += [model.encode([positives[row] for row in column]) for column in places.T]
    exact = [part.astype(np.float64) for part in vectors]
    expected = oracle(exact, groups, symmetric=spec.symmetric)
    assert result.loss[0][1] == pytest.approx(expected, rel=1e-5)
    unmasked = oracle(exact, np.arange(groups.size).reshape(groups.shape))
    assert result.loss[0][1] != pytest.approx(unmasked, rel=1e-3)


@pytest.mark.parametrize("kind", ["static", "qwen2"])
def test_triplets_are_in_the_loss(kind, models, tmp_path):
    """Each row's own negative is a candidate of all of them, but for rows whose positive it is."""
    rows = [(*pair, TEXTS[i + 1][1], i + 1) for i, pair in enumerate(TEXTS[:20])]
    pairs = [triplets("a", rows), PAIRS[1]]
    batch = int(np.flatnonzero(PLAN.dataset_S == 0)[0])
    plan = make_plan(PLAN.row_SB[[batch]], [0], [0])
    spec = TrainSpec(student=str(models.get(kind, kind)), dim=16, temperature=0.1)
    result = train.train_student(pairs, plan, spec, seed=5, output=tmp_path)
    chosen = [rows[row] for row in plan.row_SB[0]]
    model = build_student(spec, seed=5)
    vectors = [model.encode(list(texts)) for texts in list(zip(*chosen, strict=True))[:3]]
    groups = np.column_stack([plan.row_SB[0], [row[3] for row in chosen]])
    expected = oracle([part.astype(np.float64) for part in vectors], groups)
    assert result.loss[0][1] == pytest.approx(expected, rel=1e-5)


def test_adapters_are_all_that_is_kept_of_a_step(models, tmp_path):
    def stop(step, steps):
        if step == 2:
            raise Stopped

    spec = TrainSpec(student=str(models["qwen2"]), lora=LoraSpec(r=2))
    checkpoints = Checkpoints(ArtifactStore(str(tmp_path / "store")), STUDENT, seconds=0)
    with pytest.raises(Stopped):
        run(spec, tmp_path / "model", checkpoints=checkpoints, progress=stop)
    with checkpoints.last() as folder:
        assert all("lora_" in name for name in load_file(folder / "trained.safetensors"))
