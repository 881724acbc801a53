"""Trainings that remember what each step was given, by each of the trainers of docs/trainers.md.

    python -m tests.trainers URI MODEL FOLDER STOP

A process of any number trains twice with each trainer: through the whole plan, and from where the
last process group stopped in FOLDER until step STOP. What it saw goes to
``FOLDER/seen-<processes>-<rank>.json``: trainer -> run -> a list a step: columns of texts, groups,
loss.
"""

import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from b3_core.collate import TextCollator
from b3_core.config import BatchSpec, Phase
from b3_core.hf import ContrastiveModel, PlanTrainerMixin
from b3_core.loss import GroupedInfoNCE
from b3_core.mined import MinedBatches
from tests import tiny
from tests.conftest import topic_table
from tests.core.test_manifest import mine

WORLD, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def small_manifest(folder, *, epochs=3, negatives=2, datasets=2):
    """Mine two tables, or one; return the manifest and a tiny model that knows the words."""
    faq, forum = topic_table(60), topic_table(44, seed=1)
    # Fewer groups than a batch has rows: some rows and negatives of a batch are masked.
    answers = forum["answer"].to_pylist()[:6]
    forum = forum.set_column(1, "answer", pa.array([answers[row % 6] for row in range(44)]))
    forum = forum.set_column(0, "question", pa.array([f"forum {q.as_py()}" for q in forum[0]]))
    # Something that is no text, for each row of the source.
    faq = faq.append_column("image", pa.array([f"image {row}".encode() for row in range(60)]))
    batching = BatchSpec(batch_size=8, curriculum=(Phase(epochs=epochs),), negatives=negatives)
    tables = [faq, forum][:datasets]
    store, stage = mine(folder, batching, *tables)
    texts = [text.as_py() for table in tables for name in (0, 1) for text in table[name]]
    return store.get(stage.address), tiny.bert(texts, folder / "bert", dropout=0.0)


class Seen:
    """What a loss was given, step after step."""

    def __init__(self, tokenizer):
        self.steps = []
        self._tokenizer = tokenizer

    def note(self, columns, labels, loss):
        texts = [self._tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in columns]
        self.steps.append([texts, labels.tolist(), loss.item()])


class Recorder(GroupedInfoNCE):
    def forward(self, sentence_features, labels=None):
        features = list(sentence_features)
        loss = super().forward(features, labels)
        self.seen.note([part["input_ids"] for part in features], labels, loss)
        return loss


class RecorderModel(ContrastiveModel):
    def forward(self, label=None, **tokens):
        output = super().forward(label, **tokens)
        columns = [ids for name, ids in tokens.items() if name.endswith("_input_ids")]
        self.seen.note(columns, label, output["loss"])
        return output


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **more):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


SETTINGS = {
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def by_sentence_transformers(mined, folder, out, stop):
    model = SentenceTransformer(folder, device="cpu", local_files_only=True)
    loss = Recorder(model, temperature=0.05, gather=WORLD > 1)
    loss.seen = Seen(model.tokenizer)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=out,
        per_device_train_batch_size=mined.batch_size // WORLD,
        batch_sampler=mined.batch_sampler(processes=WORLD),
        **SETTINGS,
    )
    trainer = SentenceTransformerTrainer(
        model, arguments, mined.slots, loss=loss, callbacks=[StopAt(stop)]
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if os.path.isdir(out) else None)
    return loss.seen.steps


def _own_model(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss = GroupedInfoNCE(temperature=0.05, gather=WORLD > 1)
    model = RecorderModel(AutoModel.from_pretrained(folder), loss)
    model.seen = Seen(tokenizer)
    return model, TextCollator(tokenizer)


class HuggingFaceTrainer(PlanTrainerMixin, Trainer):
    pass


def by_hugging_face(mined, folder, out, stop):
    model, collate = _own_model(folder)
    arguments = TrainingArguments(
        output_dir=out, per_device_train_batch_size=mined.batch_size // WORLD, **SETTINGS
    )
    trainer = HuggingFaceTrainer(
        model, arguments, mined=mined, data_collator=collate, callbacks=[StopAt(stop)]
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out) if os.path.isdir(out) else None)
    return model.seen.steps


def _loop(model, optimizer, loader, sampler, place, stop, *, backward):
    """Train epoch by epoch; ``place`` is where the pass was, by its own count."""
    step = sum(place["before"]) + place["at"]["batches"]
    sampler.load_state_dict(place["at"])
    for epoch in range(place["at"]["epoch"], sampler.epochs):
        sampler.set_epoch(epoch)
        first = place["at"]["batches"] if epoch == place["at"]["epoch"] else 0
        for done, batch in enumerate(loader, start=first + 1):
            backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step == stop:
                return {"epoch": epoch, "batches": done}
    return None


def _by_loop(mined, folder, out, stop, *, accelerator=None):
    model, collate = _own_model(folder)
    sampler = mined.sampler(processes=WORLD)
    file = Path(out, "place.pt")
    saved = torch.load(file) if file.exists() else None
    if saved:
        model.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    own = model
    if accelerator is not None:
        loader = DataLoader(mined.slots, batch_sampler=sampler, collate_fn=collate)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    else:
        shard = BatchSamplerShard(sampler, WORLD, RANK)
        loader = DataLoader(mined.slots, batch_sampler=shard, collate_fn=collate)
        model = DistributedDataParallel(model) if WORLD > 1 else model
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
    at = saved["at"] if saved else {"epoch": 0, "batches": 0}
    many = torch.bincount(torch.tensor(mined.plan.epoch_S.astype(int))).tolist()
    place = {"at": at, "before": many[: at["epoch"]]}
    backward = torch.Tensor.backward if accelerator is None else accelerator.backward
    stopped = _loop(model, optimizer, loader, sampler, place, stop, backward=backward)
    if stopped is not None:
        if accelerator is None:  # nothing fetches ahead: the sampler knows as well
            assert sampler.state_dict() == stopped
        if RANK == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": own.state_dict(), "optimizer": optimizer.state_dict(), "at": stopped}
            torch.save(state, file)
    if WORLD > 1:
        torch.distributed.barrier()
    return own.seen.steps


def by_plain_torch(mined, folder, out, stop):
    if WORLD > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    return _by_loop(mined, folder, out, stop)


def by_accelerate(mined, folder, out, stop):
    return _by_loop(mined, folder, out, stop, accelerator=Accelerator(cpu=True))


TRAINERS = {
    each.__name__: each
    for each in (by_sentence_transformers, by_hugging_face, by_plain_torch, by_accelerate)
}


def main(uri, model, folder, stop):
    torch.set_num_threads(1)
    mined = MinedBatches.open(uri)
    seen = {}
    for name, train in TRAINERS.items():
        seen[name] = {
            "whole": train(mined, model, f"{folder}/whole-{WORLD}/{name}", None),
            "part": train(mined, model, f"{folder}/part/{name}", int(stop)),
        }
    Path(folder, f"seen-{WORLD}-{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
