"""How an encoder is run: in what precision, and whether its activations are kept for the backward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")
"""A tensor, or a named tuple of tensors."""


@dataclass(frozen=True)
class Running:
    """Runs a part of an encoder on pixels."""

    bfloat16: bool | None = None
    """Convolutions and products in bfloat16; None for on CUDA only. What comes out has the weights' type again."""
    recompute: bool = False
    """Keep only the pixels, and compute everything else once more for the backward pass: the same gradients from far
    less memory, for a third more time."""

    def __call__(self, part: Callable[[Tensor], T], pixels: Tensor, dtype: torch.dtype) -> T:
        """Return ``part`` of the pixels as numbers in 0..1.

        Args:
            part: from images (image, channels, height, width) in 0..1 to features.
            pixels: such images, or bytes.
            dtype: of the weights, and of the result.
        """

        def run(pixels: Tensor) -> T:
            images = pixels.to(dtype).div_(255) if pixels.dtype == torch.uint8 else pixels
            with self._precision(pixels.device):
                found: T = _as(part(images), dtype)
            return found

        if self.recompute and torch.is_grad_enabled():
            kept: T = checkpoint(run, pixels, use_reentrant=False)
            return kept
        return run(pixels)

    def _precision(self, device: torch.device) -> torch.autocast | nullcontext[None]:
        wanted = device.type == "cuda" if self.bfloat16 is None else self.bfloat16
        return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


def _as(found: Any, dtype: torch.dtype) -> Any:
    if isinstance(found, Tensor):
        return found.to(dtype)
    return type(found)(*(tensor.to(dtype) for tensor in found))
