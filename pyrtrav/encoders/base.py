"""What every encoder is: patches of one size in, a vector and a map of each out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pyrtrav.encoders.running import Running
from pyrtrav.errors import ConfigError


class Encoding(NamedTuple):
    """What an encoder makes of patches."""

    vector: Float[Tensor, "fixation channel"]
    """What is in the patch: the paper's V_n."""
    map: Float[Tensor, "fixation map_channel row column"]
    """Where in the patch it is: the paper's F_n."""


NARROWEST_CHANNELS_LAST = 16
"""Outputs from which on convolutions have their weights channels last: 1.3 to 2.6 times as fast on a CPU, and what
tensor cores want. With fewer, the backward pass of torch 2.13 on a CPU then writes beyond its buffers on several
threads: a crash at best."""


class Window(NamedTuple):
    """A layer that slides over its input, as far as geometry goes."""

    kernel: int
    stride: int
    pooling: bool = False


class Encoder(nn.Module, ABC):
    """Normalises patches and encodes them, each on its own, but in training where features are normalised over a batch.

    A subclass writes `features`. Convolutions may be slid over larger images by calling it directly.

    Attributes:
        channels: 1 (gray) or 3 (RGB).
        base_resolution: side of a patch in pixels.
        vector_size: length of the vector.
        map_size: rows and columns of the map.
        map_channels: channels of the map.
        windows: the layers along the longest path; empty where features are no stack of sliding windows.
        mean, std: of each channel of patches in 0..1, shape (1, channels, 1, 1); saved with the weights.
    """

    mean: Tensor
    std: Tensor
    layers_only: ClassVar[bool] = True
    """Whether convolutions and fully connected layers are all that multiplies, so that counting those is enough."""
    takes_context: bool = False
    """Whether it can heed what surrounds a patch: then it writes `encode_within`."""
    running: Running = Running()
    """Precision and memory; training sets it."""

    def __init__(
        self,
        *,
        channels: int,
        base_resolution: int,
        vector_size: int,
        map_size: tuple[int, int],
        map_channels: int,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        windows: Sequence[Window] = (),
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ConfigError(f"an encoder sees 1 channel (gray) or 3 (RGB), not {channels}")
        self.channels, self.base_resolution = channels, base_resolution
        self.vector_size, self.map_size, self.map_channels = vector_size, map_size, map_channels
        self.windows = tuple(windows)
        self.register_buffer("mean", _per_channel("mean", mean, channels))
        self.register_buffer("std", _per_channel("std", std, channels))
        # Asked of the numbers, not of the tensor: on the meta device there is none.
        if min(std if isinstance(std, Sequence) else [std]) <= 0:
            raise ConfigError(f"std must be above 0, got {std}")

    def forward(
        self,
        patches: Float[Tensor, "fixation channels size size"] | UInt8[Tensor, "fixation channels size size"],
        context: Float[Tensor, "fixation known_and_channels size size"]
        | UInt8[Tensor, "fixation known_and_channels size size"]
        | None = None,
    ) -> Encoding:
        """Encode patches in 0..1, or bytes.

        Args:
            patches: what is encoded.
            context: of each the square of twice the side around it, likewise; a last channel is 0 where that is
                unknown and full elsewhere.

        Raises:
            ConfigError: patches of another size or number of channels, or an encoder that heeds no context.
        """
        side = self.base_resolution
        if patches.shape[1:] != (self.channels, side, side):
            got, rows, columns = patches.shape[1:]
            raise ConfigError(
                f"{type(self).__name__} takes patches of {self.channels} x {side} x {side} "
                f"(channels, rows, columns), got {got} x {rows} x {columns}"
            )
        if context is None:
            return self.running(lambda images: self.encode(self.normalise(images)), patches, self.mean.dtype)
        if not self.takes_context:
            raise ConfigError(f"{type(self).__name__} heeds nothing around a patch")
        return self.running(self._encode_both, torch.cat([patches, context], 1), self.mean.dtype)

    def _encode_both(self, both: Tensor) -> Encoding:
        patches, around, known = torch.split(both, [self.channels, self.channels, 1], 1)
        # What is unknown is zero, as a convolution pads.
        return self.encode_within(self.normalise(patches), self.normalise(around) * known)

    def normalise(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image channels height width"]:
        """Return images in 0..1 as `features` and `encode` want them; any size."""
        # On a CPU the weights' own layout decides (see NARROWEST_CHANNELS_LAST).
        layout = torch.channels_last if images.is_cuda else torch.contiguous_format
        return (images.contiguous(memory_format=layout) - self.mean) / self.std

    def encode(self, patches: Float[Tensor, "fixation channels size size"]) -> Encoding:
        """Encode normalised patches: the map is the features, the vector their mean over rows and columns."""
        features = self.features(patches)
        return Encoding(features.mean((2, 3)), features)

    def encode_within(
        self,
        patches: Float[Tensor, "fixation channels size size"],
        around: Float[Tensor, "fixation channels size size"],
    ) -> Encoding:
        """Encode normalised patches, each in the middle of a square of twice its side; where ``takes_context``."""
        raise NotImplementedError

    @abstractmethod
    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image map_channels rows columns"]:
        """Return the last feature map of normalised images of any size: the mean over its positions is the vector."""

    @property
    def resolved(self) -> dict[str, Any]:
        """Options that building found elsewhere: a model file keeps them, so that it needs nothing else."""
        return {}

    @property
    def total_stride(self) -> int:
        """Pixels from one feature to the next."""
        return math.prod(window.stride for window in self._local_windows())

    @property
    def receptive_field(self) -> int:
        """Side in pixels of what one feature sees, counted to the last convolution as in the paper."""
        windows = self._local_windows()
        last = max(i for i, window in enumerate(windows) if not window.pooling)
        side, step = 1, 1
        for kernel, stride, _ in windows[: last + 1]:
            side += (kernel - 1) * step
            step *= stride
        return side

    def _local_windows(self) -> tuple[Window, ...]:
        if not self.windows:
            raise ConfigError(
                f"{type(self).__name__}, with these options, has no receptive field: a feature sees the whole image; "
                "choose norm=channel where it has that option, or another encoder"
            )
        return self.windows


def _per_channel(name: str, values: float | Sequence[float], channels: int) -> Tensor:
    numbers = [float(v) for v in values] if isinstance(values, Sequence) else [float(values)] * channels
    if len(numbers) != channels:
        raise ConfigError(f"{name} has {len(numbers)} values for {channels} channels")
    return torch.tensor(numbers).view(1, channels, 1, 1)


def count_macs(module: Callable[..., object], *inputs: object) -> int:
    """Return the multiply-accumulates of one application of a module or function of tensors.

    Those of convolutions and matrix products; biases, pooling and activations are not counted, as in tables
    1 to 5 of "Image classification through top-down image pyramid traversal". On the meta device the count is
    free.
    """
    if isinstance(module, Encoder) and not module.layers_only:
        return _count_by_torch(module, *inputs)
    total, asking = 0, get_ident()

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        nonlocal total
        # The hook is everybody's: other threads may be classifying.
        if get_ident() != asking:
            return
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and isinstance(output, Tensor):
            # Every output is one weight vector applied.
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            # Every input is spread by its channel's weights.
            total += inputs[0].numel() * layer.weight[0].numel()

    # torch's own counter says the same (tested), but loading it takes a second.
    hook = register_module_forward_hook(count)
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        hook.remove()
    return total


def _count_by_torch(module: Callable[..., object], *inputs: object) -> int:
    """The products of attention too, which must be written out to be seen."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return int(counter.get_total_flops()) // 2


def init_xavier(module: nn.Module) -> None:
    """Give every convolution and fully connected layer in a module Xavier uniform weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
