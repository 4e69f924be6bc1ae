"""Learned filter sizes: every layer has the same filters at several resolutions and learns how to mix them.

Source: "Convolutional Neural Networks without Pooling or Fixed Filter Sizes" (anonymous WACV submission 832).

    B, basic convolution block                `ConvBlock`, `MBConvBlock`
    S, U; R resolutions                       `halved`, `enlarged`; ``resolutions``
    M, multi-resolution layer, equation (4)   `MultiresLayer`
    alpha, beta, equations (5) and (6)        `Mixing` of a layer, and of the layers' outputs (``learn_depth``)
    D_a trains f, D_b trains alpha and beta   ``parts().weights``, ``parts().mixing``
    thresholds, one res.                      `prune`, `prune_to_one`
    No Pooling, Predefined, Scale Invariant   ``structure``

Vector: the mean over the last layer's positions, which is what the paper's classifier sees. Map: that layer, averaged
over the cells of the coarsest resolution; the last layer itself has as many positions as the image.

Differs from the paper:
1. The number of resolutions is not stated: 4 here. With an image layer, eight blocks and the classifier for its "10
   layers" (six for 8), the costs that it prints come out within 2% and the parameters within 3%, but for the costs of
   "Predefined Pooling".
2. The kind of pooling and upsampling is not stated: the maximum and the nearest here, so that halving what was
   enlarged gives it back, and layers that keep the same single resolution are a usual network.
3. "Predefined Pooling" lowers the resolution at equal intervals ("every 2-3 layers"). That costs 0.10e9
   multiply-accumulates where table 1 says 0.26e9, which no structure of that kind has (docs/encoders.md).
4. What is pruned is set to zero, the rest is not scaled up; fine-tuning may do so.
5. MBConv6 has EfficientNet's shortcut and SiLU; the paper names neither.
6. Features are normalised over the channels of each position; ``norm="batch"`` is the paper's, with statistics for
   each resolution apart, on which it says nothing.
7. The image layer may have a stride; the paper's is 1.
8. `pyrtrav train` has one optimiser for all parameters, on all data. The paper's two parts in turn, pruning and
   fine-tuning are `benchmarks.learned_filters`, on images alone.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders.base import NARROWEST_CHANNELS_LAST, Encoder, Encoding, Window
from pyrtrav.encoders.multires.blocks import BLOCKS, ConvBlock, Mixing, MultiresLayer
from pyrtrav.encoders.normalisation import LOCAL
from pyrtrav.errors import ConfigError, nearest_name

STRUCTURES = ("learned", "scale-invariant", "predefined", "no-pooling")


class Parts(NamedTuple):
    """Parameters that are trained on different parts of the training data."""

    weights: list[nn.Parameter]
    """Filters and what normalises them."""
    mixing: list[nn.Parameter]
    """Logits of the mixing weights; none where these are fixed."""


class MultiresEncoder(Encoder):
    """An image layer, then layers of a constant number of channels that mix resolutions.

    Args:
        channels: 1 or 3.
        base_resolution: a multiple of the stride times the side of the coarsest cell.
        filters: of every layer.
        blocks: layers after the image layer.
        block: "conv", or "mbconv", which sees whole images and does not go with `fcn`.
        resolutions: full, half, quarter ... that a layer chooses from.
        structure: "learned", or a fixed one: "scale-invariant", all resolutions alike; "predefined", one a layer,
            lower and lower; "no-pooling".
        learn_depth: the last features are a mixture of all layers' outputs, which is learned.
        stride: of the image layer.
        norm: "channel", over the channels of each position; "patch", over a patch; or "batch", the paper's. The last
            two do not go with `fcn`.
        mean, std: of patches in 0..1, one number or one for each channel.
        kept: resolutions that each layer computes; pruning sets it.
        outputs: layers whose outputs are mixed; pruning sets it. There are no layers after the last of them.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        base_resolution: int = 64,
        filters: int = 16,
        blocks: int = 8,
        block: str = "conv",
        resolutions: int = 4,
        structure: str = "learned",
        learn_depth: bool = False,
        stride: int = 2,
        norm: str = "channel",
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
        kept: Sequence[Sequence[int]] | None = None,
        outputs: Sequence[int] | None = None,
    ) -> None:
        _check_numbers(filters=filters, blocks=blocks, resolutions=resolutions, stride=stride)
        if not isinstance(learn_depth, bool):
            raise ConfigError(f"learn_depth must be true or false, got {learn_depth!r}")
        build = _named("block", block, BLOCKS)
        _named("structure", structure, STRUCTURES)
        total = stride * 2 ** (resolutions - 1)
        if base_resolution < total or base_resolution % total:
            raise ConfigError(
                f"base resolution {base_resolution} is no multiple of {total}, the stride {stride} of the image layer "
                f"times the cell of {resolutions} resolutions"
            )
        super().__init__(
            channels=channels,
            base_resolution=base_resolution,
            vector_size=filters,
            map_size=(base_resolution // total, base_resolution // total),
            map_channels=filters,
            mean=mean,
            std=std,
        )
        self.resolutions, self.stride = resolutions, stride
        self.local = block != "mbconv" and norm == LOCAL
        self.image = ConvBlock(channels, filters, 1, norm, stride)
        self.layers = nn.ModuleList(
            MultiresLayer(build(filters, filters, resolutions, norm), Mixing(resolutions, structure == "learned"))
            for _ in range(blocks)
        )
        self.depth = Mixing(blocks, learn_depth)
        self._draw()
        self._set_structure(_kept(structure, blocks, resolutions), range(blocks) if learn_depth else [blocks - 1])
        self.pruned = False
        if kept is not None or outputs is not None:
            self.keep(kept or self.kept, outputs or self.outputs)

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """The resolutions that each layer computes."""
        return tuple(layer.mixing.kept for layer in self._layers())

    @property
    def outputs(self) -> tuple[int, ...]:
        """The layers whose outputs are mixed."""
        return self.depth.kept

    @property
    def resolved(self) -> dict[str, Any]:
        return {"kept": [list(used) for used in self.kept], "outputs": list(self.outputs)} if self.pruned else {}

    def keep(self, kept: Sequence[Sequence[int]], outputs: Sequence[int]) -> None:
        """Compute these resolutions in each layer, and mix these layers' outputs; later layers are removed.

        Raises:
            ConfigError: there are none, or not among those that are computed now.
        """
        _check_part("outputs", outputs, self.outputs)
        if len(kept) <= outputs[-1]:
            raise ConfigError(f"kept has {len(kept)} layers, outputs asks for layer {outputs[-1]}")
        for used, now in zip(kept, self.kept, strict=False):
            _check_part("kept", used, now)
        self._set_structure(kept, outputs)
        self.pruned = True

    def _set_structure(self, kept: Sequence[Sequence[int]], outputs: Sequence[int]) -> None:
        del self.layers[outputs[-1] + 1 :]
        for layer, used in zip(self._layers(), kept, strict=False):
            layer.mixing.kept = tuple(used)
        self.depth.kept = tuple(outputs)
        # One window holds what a feature sees. Squeezing and exciting sees all of an image: no window at all.
        total = self.stride * 2 ** (self.resolutions - 1)
        field = total + 2 * (1 + self.stride * sum(layer.margin for layer in self._layers()))
        self.windows = (Window(field, total), Window(1, 1, pooling=True)) if self.local else ()

    def _layers(self) -> list[MultiresLayer]:
        return [layer for layer in self.layers if isinstance(layer, MultiresLayer)]

    def parts(self) -> Parts:
        """Return the parameters in the two groups that are trained on two parts of the data, batch by batch."""
        mixing = [
            module.logits for module in self.modules() if isinstance(module, Mixing) and module.logits is not None
        ]
        chosen = {id(logits) for logits in mixing}
        return Parts([weight for weight in self.parameters() if id(weight) not in chosen], mixing)

    def mixtures(self) -> list[Mixing]:
        """Return how each layer mixes its resolutions."""
        return [layer.mixing for layer in self._layers()]

    def mixing_table(self) -> Tensor:
        """Return the mixing weights, shape (layer, resolution), in float64 on the CPU; 0 for what is not computed."""
        return torch.stack([mixing.table() for mixing in self.mixtures()])

    def encode(self, patches: Float[Tensor, "fixation channels size size"]) -> Encoding:
        """Encode normalised patches: the vector is the mean over the last layer."""
        features = self._last(patches)
        return Encoding(features.mean((2, 3)), self._pooled(features))

    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image map_channels rows columns"]:
        """Return the last layer's means over the coarsest cells, of normalised images of any size."""
        return self._pooled(self._last(images))

    def _last(self, images: Tensor) -> Tensor:
        features: Tensor = self.image(images)
        found: list[Tensor] = []
        weights = dict(zip(self.outputs, self.depth(), strict=True))
        for number, layer in enumerate(self.layers):
            features = layer(features)
            if number in weights:
                found.append(features * weights[number])
        return sum(found[1:], found[0])

    def _pooled(self, features: Tensor) -> Tensor:
        return functional.avg_pool2d(features, 2 ** (self.resolutions - 1), ceil_mode=True)

    def _draw(self) -> None:
        """Draw weights for ReLU networks; biases are zero."""
        convolutions = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if all(layer.out_channels >= NARROWEST_CHANNELS_LAST and layer.groups == 1 for layer in convolutions):
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _kept(structure: str, blocks: int, resolutions: int) -> list[tuple[int, ...]]:
    """Return the resolutions that each layer of a structure computes."""
    if structure == "no-pooling":
        return [(0,)] * blocks
    if structure == "predefined":
        return [(layer * resolutions // blocks,) for layer in range(blocks)]
    return [tuple(range(resolutions))] * blocks


def _named(option: str, name: str, known: Collection[str] | Mapping[str, Any]) -> Any:
    if name not in known:
        raise ConfigError(f"unknown {option} {name!r}{nearest_name(name, known)}")
    return known[name] if isinstance(known, Mapping) else name


def _check_numbers(**numbers: int) -> None:
    for option, number in numbers.items():
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{option} must be 1 or more, got {number}")


def _check_part(option: str, part: Sequence[int], whole: Sequence[int]) -> None:
    if not part or list(part) != sorted(set(part)) or not set(part) <= set(whole):
        raise ConfigError(f"{option} must be some of {list(whole)} in rising order, got {list(part)}")
