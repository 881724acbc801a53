"""Mined batches in Hugging Face's Trainer, and in loops of one's own: a model, and a data loader.

    MinedBatches -> PlanTrainerMixin: data loader -> TextCollator: token ids, groups
                 -> ContrastiveModel: vectors -> GroupedInfoNCE: loss

Nothing here imports transformers: the mixin goes beside whichever Trainer is used.

Legend: B rows of a device's slice, L tokens, D width, H hard negatives a row.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from b3_core.errors import InputError
from b3_core.loss import GroupedInfoNCE
from b3_core.mined import MinedBatches


def mean_of_tokens(hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean vector of each text's tokens, B x D; padding counts for nothing."""
    weight_BL1 = mask_BL[:, :, None].to(hidden_BLD.dtype)
    return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)


class ContrastiveModel(nn.Module):  # type: ignore[misc]
    """An encoder and its loss as one module, whose ``forward`` takes what ``TextCollator`` makes.

    All columns go through one call of ``forward``: wrapped in DistributedDataParallel, an encoder
    that is called once a column has its buffers overwritten between the calls.

    Parameters
    ----------
    encoder
        Returns ``last_hidden_state`` (B x L x D) for ``input_ids`` and ``attention_mask``, as the
        models of transformers do; a ``pooler`` beside is left alone. It is what to save in the end.
    loss
        With ``gather`` where there are several devices.
    pool
        Makes a text's vector of its tokens' vectors and the mask, B x L.

    Raises
    ------
    InputError
        The loss has ``chunk_rows``: gradients of vectors are not cached here.
    """

    accepts_loss_kwargs = False  # Trainer asks: the loss is a mean already

    def __init__(
        self,
        encoder: nn.Module,
        loss: GroupedInfoNCE,
        *,
        pool: Callable[[Tensor, Tensor], Tensor] = mean_of_tokens,
    ) -> None:
        super().__init__()
        if loss.mini_batch_size is not None:
            raise InputError(
                f"chunk_rows is {loss.mini_batch_size}, but this module embeds all rows at once",
                remedy="leave chunk_rows out, or train with sentence-transformers' trainer",
            )
        self.encoder, self.loss, self.pool = encoder, loss, pool
        pooler = getattr(encoder, "pooler", None)
        if isinstance(pooler, nn.Module):
            # Of no use here, and DistributedDataParallel waits for the gradient of all that trains.
            pooler.requires_grad_(False)

    def forward(self, label: Tensor | None = None, **tokens: Tensor) -> dict[str, Tensor]:
        """Return ``loss``, the mean of this device's rows.

        Parameters
        ----------
        label
            Groups: int64, B x (1 + H).
        **tokens
            ``query_input_ids``, ``query_attention_mask``, ...: int64, B x L each.
        """
        ids = "_input_ids"  # columns come in their order: query, positive, negatives
        names = [name.removesuffix(ids) for name in tokens if name.endswith(ids)]
        vectors = [self._vectors(_of_column(tokens, name)) for name in names]
        return {"loss": self.loss.of_vectors(vectors, label)}

    def _vectors(self, tokens: dict[str, Tensor]) -> Tensor:
        hidden_BLD = self.encoder(**tokens).last_hidden_state
        return self.pool(hidden_BLD, tokens["attention_mask"])


def _of_column(tokens: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}_"
    return {key.removeprefix(start): part for key, part in tokens.items() if key.startswith(start)}


class PlanTrainerMixin:
    """Gives ``transformers.Trainer`` the batches of a manifest, all epochs in one pass.

    ::

        class Trainer(PlanTrainerMixin, transformers.Trainer): ...

        trainer = Trainer(model, arguments, mined=mined, data_collator=TextCollator(tokenizer))

    Parameters
    ----------
    mined
        What to train on.
    train_dataset
        An item a slot; ``mined.slots`` if left out.
    """

    args: Any
    accelerator: Any
    data_collator: Any
    train_dataset: Any

    def __init__(self, *positional: Any, mined: MinedBatches, **settings: Any) -> None:
        self.mined = mined
        super().__init__(*positional, **settings)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this process's slices of every batch.

        Raises
        ------
        InputError
            The trainer's arguments would cut a batch, repeat it, or leave part of it out.
        """
        arguments, mined = self.args, self.mined
        processes = arguments.world_size
        sampler = mined.sampler(processes=processes, one_pass=True)
        slots = mined.slots if self.train_dataset is None else self.train_dataset
        expected = {
            "per_device_train_batch_size": (arguments.train_batch_size, sampler.batch_size),
            "num_train_epochs": (arguments.num_train_epochs, 1),
            "max_steps": (max(arguments.max_steps, 0) or mined.batches, mined.batches),
            "split_batches": (self.accelerator.split_batches, False),
            "items of train_dataset": (len(slots), mined.plan.row_SB.size),
        }
        for name, (found, right) in expected.items():
            if found != right:
                raise InputError(
                    f"{name} is {found} for the batches of {mined.uri}",
                    expected=f"{right}: {mined.batch_size} rows a batch over {processes} "
                    "processes, all epochs in one pass",
                )
        workers = arguments.dataloader_num_workers
        loader = DataLoader(
            slots,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=arguments.dataloader_pin_memory,
            persistent_workers=arguments.dataloader_persistent_workers and workers > 0,
            prefetch_factor=arguments.dataloader_prefetch_factor if workers > 0 else None,
        )
        return self.accelerator.prepare(loader)
