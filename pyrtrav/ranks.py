"""Several processes that train one model, each with its share of every batch: data parallelism under ``torchrun``.

Gradients of the processes add up. So that their sum is exactly that of the whole batch, every mean in an objective is
`whole_mean`: its value is over the images of all processes, its gradient flows through this process's alone. Terms that
are no means of images, such as the squared distance of a batch's mean number of cells to its goal, are then exact too.

With one process everything here does nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, distributed

from pyrtrav.errors import ConfigError

WAIT = timedelta(hours=12)
"""How long processes wait for one that validates or calibrates alone."""


def count() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0; number 0 writes, prints and validates."""
    return distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did, and leave them at the end.

    Raises:
        ConfigError: the environment says that there are several, but not how to find them.
    """
    if _joined() or _whole_number("WORLD_SIZE", "1") < 2:
        yield
        return
    for name in ("RANK", "MASTER_PORT"):
        _whole_number(name)
    if "MASTER_ADDR" not in os.environ:
        raise _not_started("MASTER_ADDR")
    # Functions of this module keep, as a default, the group that there is at its import. Imported later (the first
    # optimizer does), it would keep ours alive, and threads that outlive the interpreter abort the process at its exit.
    import_module("torch.distributed.nn")

    # Plain data and tensors on the host go over gloo, tensors on GPUs over nccl.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=WAIT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _whole_number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise _not_started(name)
    return int(text)


def _not_started(name: str) -> ConfigError:
    found = f"{name} is {os.environ[name]!r}" if name in os.environ else f"{name} is not set"
    return ConfigError(
        f"the environment says WORLD_SIZE={os.environ['WORLD_SIZE']}, as of several processes that train together, but "
        f"{found}; start it with torchrun, or unset WORLD_SIZE"
    )


def own_device(device: str) -> str:
    """Return the device that this process should use: its own GPU where any GPU is meant."""
    if count() > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device


def gather(value: Any) -> list[Any]:
    """Return every process's value, in order; a value is what JSON can say."""
    if count() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    distributed.all_gather(sizes, torch.tensor([len(data)]))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = data
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    distributed.all_gather(texts, padded)
    return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]


def whole_mean(total: Tensor, number: Tensor | int) -> Tensor:
    """Return the quotient of two sums over the images of all processes; 0 where there are none.

    Args:
        total: this process's sum, of any shape; the gradient flows through it.
        number: of how many values it is the sum; as a tensor of the same shape, or one for all.
    """
    if count() == 1:
        return total / (number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1))
    numbers = torch.as_tensor(number, dtype=torch.float64, device=total.device).expand(total.shape)
    sums = torch.stack([total.detach().double(), numbers])
    distributed.all_reduce(sums)
    others = (sums[0] - total.detach().double()).to(total.dtype)
    return (total + others) / sums[1].clamp(min=1).to(total.dtype)


def add_gradients(weights: Iterable[torch.nn.Parameter]) -> None:
    """Add up the gradients of all processes; a weight without one in any has none afterwards."""
    if count() == 1:
        return
    weights = [weight for weight in weights if weight.requires_grad]
    present = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
    distributed.all_reduce(present, op=distributed.ReduceOp.MAX)
    used = [weight for weight, some in zip(weights, present.tolist(), strict=True) if some]
    for weight in used:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in used if weight.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
