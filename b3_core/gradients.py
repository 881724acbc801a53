"""Gradients averaged over processes after the backward pass, whichever parts it went through.

DistributedDataParallel averages while gradients come in, and must know beforehand which will: a
model that embeds pictures in one pass and texts in another, as a column each asks for, breaks that.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed, nn

_BUCKET = 1 << 24  # numbers sent at once


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Set every process's gradients to their mean; one that no process has stays absent.

    A process that lacks a gradient which another has counts as zero: no row of its own went there.
    """
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if processes == 1 or not trained:
        return
    there = torch.tensor([part.grad is not None for part in trained], device=trained[0].device)
    there = there.to(torch.uint8)
    distributed.all_reduce(there, distributed.ReduceOp.MAX)
    wanted = [part for part, anywhere in zip(trained, there.tolist(), strict=True) if anywhere]
    for part in wanted:
        if part.grad is None:
            part.grad = torch.zeros_like(part)
    for bucket in _buckets([part.grad for part in wanted if part.grad is not None]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= processes
        for gradient, mean in zip(
            bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield gradients of one type together, in their order, some millions of numbers at a time."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(each.numel() for each in bucket) + gradient.numel() > _BUCKET
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
