"""Each trainer's steps get the plan's batches: texts, hard negatives and groups, on any world.

What is compared was noted by the losses themselves (``tests/trainers.py``).
"""

import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, TrainingArguments

from b3_core.artifacts import Address
from b3_core.collate import TextCollator
from b3_core.errors import InputError
from b3_core.hf import ContrastiveModel, mean_of_tokens
from b3_core.loss import GroupedInfoNCE
from b3_core.manifest import Manifest
from b3_core.mined import MinedBatches
from b3_core.pairs import NOBODY, PairTable
from tests import trainers
from tests.conftest import ROOT, free_port
from tests.trainers import TRAINERS, small_manifest

PAGE = ROOT / "docs" / "trainers.md"
SIZE = 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest's artifact, and a model's folder."""
    return small_manifest(tmp_path_factory.mktemp("trainers"))


@pytest.fixture(scope="module")
def mined(made):
    return MinedBatches.open(made[0].uri)


def planned(artifact):
    """Every batch as the manifest's own tables have it: columns of texts, groups."""
    manifest = Manifest.load(artifact)
    tables = [
        PairTable.load(artifact.store.get(Address(e["name"], "pairs", e["pairs"])), "train")
        for e in manifest.head["datasets"]
    ]
    plan, hard = manifest.plan, manifest.negatives.row_SBH
    batches = []
    for s, dataset in enumerate(plan.dataset_S):
        table, own_B, hard_BH = tables[dataset], plan.row_SB[s], hard[s]
        if (hard_BH < 0).all():  # no columns for what a whole batch lacks
            hard_BH = hard_BH[:, :0]
        filled_BH = np.where(hard_BH < 0, own_B[:, None], hard_BH)
        at = [own_B, *filled_BH.T]
        texts = [
            table.queries.take(own_B).to_pylist(),
            *(table.positives.take(row_B).to_pylist() for row_B in at),
        ]
        group_N = table.group_N + dataset * (tables[0].group_N.max() + 1)
        group_BH = np.where(hard_BH < 0, NOBODY, group_N[hard_BH])
        batches.append([texts, np.column_stack([group_N[own_B], group_BH]).tolist()])
    return batches


@pytest.fixture(scope="module")
def first(mined):
    """The first slot of the first batch that has hard negatives."""
    return SIZE * int((mined.places.negative_SBH >= 0).any(axis=(1, 2)).argmax())


def joined(ranks):
    """Put the ranks' slices of each step together; every rank must have as many steps."""
    assert len({len(steps) for steps in ranks}) == 1
    batches = []
    for slices in zip(*ranks, strict=True):
        columns = [sum(parts, []) for parts in zip(*(texts for texts, _, _ in slices), strict=True)]
        batches.append([columns, sum((labels for _, labels, _ in slices), [])])
    return batches


def losses(ranks):
    return np.mean([[loss for _, _, loss in steps] for steps in ranks], axis=0)


@pytest.mark.parametrize("name", ["by_hugging_face", "by_plain_torch"])
def test_its_steps_are_the_plans_batches(name, made, mined, tmp_path):
    artifact, model = made
    expected, out = planned(artifact), str(tmp_path / "out")
    assert len(expected) == mined.batches > 30
    first = TRAINERS[name](mined, str(model), out, 17)
    rest = TRAINERS[name](mined, str(model), out, None)
    assert joined([first]) == expected[:17]
    assert joined([rest]) == expected[17:]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_trainer_on_every_world_sees_the_plan_and_goes_on_where_another_was(made, tmp_path):
    """Three epochs with 1, 2 and 4 processes; and with 1, then 2, then 4 of them."""
    artifact, model = made
    expected = planned(artifact)
    stops = {1: 11, 2: 23, 4: len(expected)}  # at the end of an epoch; in the middle of one
    masked = [np.array(labels) for _, labels in expected]
    assert sum(len(set(group_BH[:, 0])) < SIZE for group_BH in masked) > 10
    # Some batches have hard negatives, and some lack all of them, and have no columns for any.
    assert {group_BH.shape[1] for group_BH in masked} == {1, 3}
    seen = {}
    for world, stop in stops.items():
        port = str(free_port())
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
        command = [sys.executable, "-m", "tests.trainers", artifact.uri, str(model), str(tmp_path)]
        running = [
            subprocess.Popen(
                [*command, str(stop)],
                env={
                    **os.environ,
                    **({**group, "RANK": rank, "LOCAL_RANK": rank} if world > 1 else {}),
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                },
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in map(str, range(world))
        ]
        said = [process.communicate(timeout=700)[0] for process in running]
        assert all(process.returncode == 0 for process in running), "\n".join(said)
        files = [tmp_path / f"seen-{world}-{rank}.json" for rank in range(world)]
        seen[world] = [json.loads(file.read_text()) for file in files]
    for name in TRAINERS:
        at = 0
        for world, stop in stops.items():
            whole, part = ([each[name][run] for each in seen[world]] for run in ("whole", "part"))
            assert joined(whole) == expected, (name, world)
            assert joined(part) == expected[at:stop], (name, world)
            # The loss is over the whole batch, so it is that of one process.
            one = [seen[1][0][name]["whole"]]
            np.testing.assert_allclose(losses(whole), losses(one), rtol=2e-3, err_msg=name)
            np.testing.assert_allclose(losses(part), losses(one)[at:stop], rtol=2e-3, err_msg=name)
            at = stop


def blocks():
    """The page's scripts: section -> code."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        (code,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        found[section.splitlines()[0]] = code
    return found


def filled(code, artifact, model, source):
    """Put in what a reader would."""
    for placeholder, value in {
        "s3://bucket/store/demo/manifest/0123456789abcdef0123": artifact.uri,
        "path/to/model": str(model),
        "path/to/pairs.parquet": str(source),
    }.items():
        code = code.replace(placeholder, value)
    return code


def run_script(code, folder, launch=()):
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, *launch, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_page_has_a_script_for_each():
    assert list(blocks()) == [
        "sentence-transformers",
        "Hugging Face Trainer",
        "Plain torch",
        "Your own dataset",
    ]
    assert max(len(code.splitlines()) for code in blocks().values()) <= 40


@pytest.fixture(scope="module")
def one_table(tmp_path_factory):
    """A manifest of one dataset, whose rows have a column that was not mined."""
    folder = tmp_path_factory.mktemp("one")
    artifact, model = small_manifest(folder, epochs=2, datasets=1)
    return artifact, model, folder / "faq.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(blocks()))
def test_a_script_of_the_page_runs_as_it_stands(name, one_table, tmp_path):
    done = run_script(filled(blocks()[name], *one_table), tmp_path)
    if name == "Your own dataset":
        image = r"b'image \d+'"
        item = (
            rf"{{'query': 'how do I .*', 'positive': {image}, 'negative_1': {image}, "
            rf"'negative_2': {image}, 'label': \[\d+, \d+, \d+\]}}"
        )
        assert re.match(item, done.stdout), done.stdout
    else:
        assert list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentence-transformers", "Hugging Face Trainer"])
def test_a_script_of_the_page_runs_with_torchrun_and_goes_on(name, one_table, tmp_path):
    code = filled(blocks()[name], *one_table)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_script(code, tmp_path, launch)
    steps = MinedBatches.open(one_table[0].uri).batches
    assert steps > 10
    last = tmp_path / "trained" / f"checkpoint-{steps}" / "trainer_state.json"
    assert json.loads(last.read_text())["global_step"] == steps
    last.parent.rename(tmp_path / "once")
    run_script(code.replace(".train()", ".train(resume_from_checkpoint=True)"), tmp_path, launch)
    assert json.loads(last.read_text())["global_step"] == steps


class TestCollator:
    @pytest.fixture
    def collate(self, made):
        return TextCollator(AutoTokenizer.from_pretrained(made[1]))

    def test_columns_become_tokens_and_groups(self, collate, mined, first):
        items = [mined.slots[slot] for slot in range(first, first + 3)]
        batch = collate(items)
        names = ["query", "positive", "negative_1", "negative_2"]
        kinds = ["input_ids", "attention_mask"]
        expected = {f"{name}_{kind}" for name, kind in itertools.product(names, kinds)}
        assert expected <= set(batch)
        for name in names:
            texts = collate.tokenizer.batch_decode(
                batch[f"{name}_input_ids"], skip_special_tokens=True
            )
            assert texts == [item[name] for item in items]
        assert batch["label"].tolist() == [item["label"] for item in items]

    def test_prompts_and_length(self, collate, mined, first):
        short = TextCollator(collate.tokenizer, "call ", "to the ", max_length=3)
        batch = short([mined.slots[first]])
        decoded = {
            name: collate.tokenizer.decode(batch[f"{name}_input_ids"][0])
            for name in ("query", "positive", "negative_2")
        }
        assert decoded == {
            "query": "call " + " ".join(mined.slots[first]["query"].split()[:2]),
            "positive": "to the to",
            "negative_2": "to the to",
        }


def test_a_model_of_tokens_has_the_loss_of_its_vectors(made, mined, first):
    artifact, folder = made
    model, collate = trainers._own_model(str(folder))
    batch = collate([mined.slots[slot] for slot in range(first, first + SIZE)])
    vectors = []
    for name in ("query", "positive", "negative_1", "negative_2"):
        hidden = model.encoder(
            input_ids=batch[f"{name}_input_ids"], attention_mask=batch[f"{name}_attention_mask"]
        ).last_hidden_state
        rows = [
            row[mask.bool()].mean(0)
            for row, mask in zip(hidden, batch[f"{name}_attention_mask"], strict=True)
        ]
        vectors.append(torch.stack(rows))
    expected = GroupedInfoNCE(temperature=0.05).of_vectors(vectors, batch["label"])
    torch.testing.assert_close(model(**batch)["loss"], expected)
    first = ContrastiveModel(
        model.encoder, model.loss, pool=lambda hidden_BLD, mask_BL: hidden_BLD[:, 0]
    )
    assert not torch.allclose(first(**batch)["loss"], expected)


def test_padding_counts_for_nothing():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_of_tokens(hidden, mask).tolist() == [[2, 3], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"per_device_train_batch_size": 4},
            "per_device_train_batch_size is 4 .*expected 8: 8 rows",
        ),
        ({"num_train_epochs": 3}, "num_train_epochs is 3 .*all epochs in one pass"),
        ({"max_steps": 3}, "max_steps is 3 "),
        ({"accelerator_config": {"split_batches": True}}, "split_batches is True .*expected False"),
    ],
)
def test_arguments_that_would_cut_the_plan(changes, message, made, mined, tmp_path):
    model, collate = trainers._own_model(str(made[1]))
    settings = {**trainers.SETTINGS, "per_device_train_batch_size": SIZE, **changes}
    trainer = trainers.HuggingFaceTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), **settings),
        mined=mined,
        data_collator=collate,
    )
    with pytest.raises(InputError, match=message):
        trainer.get_train_dataloader()


def test_chunks_that_would_not_be_are_refused(made):
    encoder = AutoModel.from_pretrained(made[1])
    with pytest.raises(InputError, match="chunk_rows is 4, but this module embeds all rows"):
        ContrastiveModel(encoder, GroupedInfoNCE(temperature=0.05, chunk_rows=4))


def test_a_column_of_pictures_is_no_text(made):
    collate = TextCollator(AutoTokenizer.from_pretrained(made[1]))
    item = {"query": {"text": "a"}, "positive": "b", "label": 0}
    assert collate([item])["query_input_ids"].shape[0] == 1
    with pytest.raises(InputError, match="column positive has images"):
        collate([item | {"positive": {"image": "x.png"}}])


def test_another_manifests_dataset_is_refused(made, mined, tmp_path):
    model, collate = trainers._own_model(str(made[1]))
    settings = {**trainers.SETTINGS, "per_device_train_batch_size": SIZE}
    trainer = trainers.HuggingFaceTrainer(
        model,
        TrainingArguments(output_dir=str(tmp_path), **settings),
        mined=mined,
        data_collator=collate,
        train_dataset=mined.slots.select(range(16)),
    )
    with pytest.raises(InputError, match="items of train_dataset is 16"):
        trainer.get_train_dataloader()
