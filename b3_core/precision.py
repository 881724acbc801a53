"""Products in fp32 that are products in fp32, whatever a user allows elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def full_precision(torch: Any) -> Iterator[None]:
    """Multiply and sum in fp32: no TF32, whose errors are a thousand times, no sums in 16 bits.

    Each backend is asked and told by itself: ``torch.get_float32_matmul_precision``, which speaks
    of all of them, raises where a user has set one (``allow_tf32 = True``).
    """
    cuda = torch.backends.cuda.matmul
    holders: list[tuple[Any, str, Any]] = [
        (holder, "fp32_precision", "ieee")
        for holder in (cuda, torch.backends.mkldnn.matmul)
        if hasattr(holder, "fp32_precision")
    ] or [(cuda, "allow_tf32", False)]  # before torch 2.9
    for kind in ("fp16", "bf16"):
        holders.append((cuda, f"allow_{kind}_reduced_precision_reduction", False))
    before = [getattr(holder, name) for holder, name, _ in holders]
    try:
        for holder, name, value in holders:
            setattr(holder, name, value)
        yield
    finally:
        for (holder, name, _), value in zip(holders, before, strict=True):
            setattr(holder, name, value)
