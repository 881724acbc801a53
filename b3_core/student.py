"""The student: built from CONFIG, trained whole or by adapters, and saved as one plain model.

packaged, folder or hub id -> model (pooling, prompts, length) -> adapters put in -> trained
        -> adapters merged into the weights -> a folder that SentenceTransformer(folder) loads
        -> adapters before they are merged, in a file beside it -> a training that goes on
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import nn

from b3_core import packaged, teacher, vision
from b3_core.config import LoraSpec, TrainSpec
from b3_core.errors import CorruptArtifactError, InputError
from b3_core.static import is_static


def build_student(
    spec: TrainSpec, *, seed: int, initial: Path | None = None
) -> SentenceTransformer:
    """Return the student before training; only ``static`` starts from random weights.

    Its prompts are saved with it, as ``query`` and ``document``.

    Parameters
    ----------
    initial
        Folder of a student that was trained before, instead of ``spec.student``; where adapters
        are trained, what :func:`keep_adapters` wrote of it, for ``spec.student``.

    Raises
    ------
    InputError
        The student cannot be loaded, or cannot be trained as CONFIG says.
    CorruptArtifactError
        The adapters are of another student.
    """
    if spec.student in packaged.SMALL:
        teacher.refuse_pooling(spec.student, spec.pooling)
    if initial is not None and spec.lora is None:
        model = teacher.load_model(str(initial), revision=None)
    elif spec.student == "static":
        model = packaged.static_student(spec.dim, seed)
    elif spec.student == "tokens":
        model = packaged.token_student()
    elif spec.student == "glyphs":
        model = vision.glyph_student(seed)
    else:
        model = teacher.load_model(spec.student, revision=spec.revision, pooling=spec.pooling)
    if spec.max_length is not None:
        packaged.limit_length(model, spec.max_length)
    if is_static(model):
        model.to("cpu")
    if spec.lora is None or spec.precision == "fp32":
        # What trains is kept in 32 bits, or most steps of a half-precision weight round to nothing;
        # with bf16 the arithmetic alone is (autocast). Weights beside adapters stay as stored.
        model.float()
    if spec.lora is not None:
        put_in_adapters(model, spec.lora)
        if initial is not None:
            # Not the merged weights: in 32 bits they take twice the memory of those as stored, and
            # rounded to 16 they lose part of what the adapters had learnt.
            _take_up(model, initial)
    model.prompts = {"query": spec.query_prompt, "document": spec.positive_prompt}
    model.default_prompt_name = None
    return model


def put_in_adapters(model: SentenceTransformer, lora: LoraSpec) -> None:
    """Freeze a transformer's weights and put LoRA adapters beside them (arXiv 2106.09685).

    Raises
    ------
    InputError
        peft is not installed, the model has no layer of those names, or none at all.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise InputError(
            "train.lora needs peft, which is not installed", remedy="run: pip install peft"
        ) from error
    if not hasattr(model[0], "model"):
        raise InputError(
            "train.lora is set, but the student is no transformer whose layers could be adapted",
            remedy="remove train.lora, or name a transformer in train.student",
        )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        exclude_modules=_read_past(model[0].model),
    )
    try:
        model[0].model = get_peft_model(model[0].model, config)
    except ValueError as error:
        raise InputError(
            f"train.lora.targets {list(lora.targets)} fit no layer of the student",
            expected="the last part of the names of linear layers, such as q_proj",
            remedy="leave train.lora.targets out: all linear layers then",
        ) from error


def _read_past(model: nn.Module) -> list[str]:
    """Name linear layers whose weights are read, but which are not called: adapters learn nothing.

    SigLIP's pictures are pooled by one of torch's own attention layers.
    """
    return [
        f"{name}.out_proj"
        for name, part in model.named_modules()
        if isinstance(part, nn.MultiheadAttention)
    ]


def save_memory(model: SentenceTransformer) -> None:
    """Have a transformer compute activations twice instead of keeping them."""
    inner = getattr(model[0], "model", None)
    if inner is None:
        return
    enable = getattr(inner, "activation_checkpointing_enable", None)  # before transformers 5: ...
    # Not the reentrant kind: beside adapters, what goes into a layer has no gradient.
    (enable or inner.gradient_checkpointing_enable)({"use_reentrant": False})


def keep_adapters(model: SentenceTransformer, file: Path) -> None:
    """Write what is trained beside frozen weights, for a training that goes on from there."""
    save_file(_trained(model), file)


def _take_up(model: SentenceTransformer, file: Path) -> None:
    kept, trained = load_file(file), _trained(model)
    if {n: p.shape for n, p in kept.items()} != {n: p.shape for n, p in trained.items()}:
        raise CorruptArtifactError(
            f"{file} has adapters of other layers than this student's",
            expected="those that the training before this one made",
            remedy="delete that student's folder and run the same command again",
        )
    with torch.no_grad():
        for name, part in trained.items():
            part.copy_(kept[name])


def _trained(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: part for name, part in model.named_parameters() if part.requires_grad}


def merge_adapters(model: SentenceTransformer) -> None:
    """Add what adapters have learnt to the weights, so that the student needs nothing beside it."""
    merge = getattr(getattr(model[0], "model", None), "merge_and_unload", None)
    if merge is not None:
        model.float()  # rounded to bf16, the sum could lose as much as the adapters have learnt
        model[0].model = merge()
