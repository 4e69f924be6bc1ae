"""Any image model of `transformers` as an encoder, by its name or its folder: ``hf:facebook/dinov2-small``.

    model gives                         here
    tokens (ViT, DINOv2, CLIP, Swin)    the patch tokens as the map; class and register tokens are left out of it
    a feature map (ResNet, ConvNeXt)    the map
    ``pooler_output``                   ``Encoding.vector``; else the class token, else the mean of the map

1. Pixels are normalised as the model's own preprocessing says, and a patch has its size. Its cropping and
   interpolation have no part in it: patches are read at that size.
2. Frozen (default) the model is never in training mode. Fine-tuned, its batch normalisation keeps the statistics that
   it came with, so that a vector depends on nothing but its patch.
3. A model file keeps the configuration and the weights, frozen ones too: it is as large as the model, and classifies
   without network and without the folder.
4. A model with a pooler whose weights do not come with it (DINO's ViT) is used without: they would be random.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrtrav.encoders import hub
from pyrtrav.encoders.base import Encoder, Encoding
from pyrtrav.errors import ConfigError


class PretrainedEncoder(Encoder):
    """An image model of `transformers`.

    Args:
        source: a folder, or a name on huggingface.co, from where it is downloaded once.
        channels: as the model has them.
        base_resolution: side of a patch; by default as in the model's preprocessing. Another side works where the
            model interpolates its positions, or has none.
        mean, std: of patches in 0..1; by default those of the model's preprocessing.
        trainable: fine-tune the model; else it is frozen.
        pooler: whether the model's own pooling gives the vector; by default where it came with weights.
        config: the architecture, from a model file, whose weights follow; ``source`` is then not looked for.
    """

    layers_only = False

    def __init__(
        self,
        source: str,
        *,
        channels: int | None = None,
        base_resolution: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        trainable: bool = False,
        pooler: bool | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(trainable, bool):
            raise ConfigError(f"trainable must be true or false, got {trainable!r}")
        name = f"encoder hf:{source}"
        model, pooler, wanted = _obtain(source, config, pooler)
        side = base_resolution or wanted.side
        mean, std = wanted.mean if mean is None else mean, wanted.std if std is None else std
        if side is None or mean is None or std is None:
            options = {"base_resolution": side, "mean": mean, "std": std}
            unsaid = ", ".join(option for option, value in options.items() if value is None)
            raise ConfigError(f"{name}: its preprocessing does not say {unsaid}; give it with --set")
        patch, seen = _check(name, model, side, channels)
        other_size = side != hub.side_of(getattr(model.config, "image_size", None))
        interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        asked = {"interpolate_pos_encoding": True} if other_size and interpolates else {}
        vector, hidden = _probe(name, model, torch.zeros(1, seen, side, side), asked)
        prefix, rows = (0, hidden.shape[3]) if hidden.ndim == 4 else _grid(name, hidden.shape[1], side, patch)
        super().__init__(
            channels=seen,
            base_resolution=side,
            vector_size=vector.shape[1],
            map_size=(rows, rows),
            map_channels=hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2],
            mean=mean,
            std=std,
        )
        self.trainable, self._pooler, self._prefix, self._asked = trainable, pooler, prefix, asked
        self.model = model.requires_grad_(trainable)
        self.train()

    @property
    def resolved(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "base_resolution": self.base_resolution,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "trainable": self.trainable,
            "pooler": self._pooler,
            "config": hub.described(self.model),
        }

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Set the mode; what is frozen stays as it is at test time, and batch normalisation always."""
        super().train(mode)
        for module in self.model.modules():
            if not self.trainable or isinstance(module, _BatchNorm):
                module.training = False
        return self

    def encode(self, patches: Float[Tensor, "fixation channels size size"]) -> Encoding:
        """Encode normalised patches by the model's own vector and its tokens or features."""
        vector, hidden = _outputs(self.model, patches, self._asked, self._prefix)
        return Encoding(vector, self._map(hidden))

    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image map_channels rows columns"]:
        """Return the map of normalised images of the base resolution."""
        return self._map(_outputs(self.model, images, self._asked, self._prefix)[1])

    def _map(self, hidden: Tensor) -> Tensor:
        if hidden.ndim == 4:
            return hidden
        return hidden[:, self._prefix :].transpose(1, 2).reshape(len(hidden), self.map_channels, *self.map_size)


def _obtain(source: str, config: Mapping[str, Any] | None, pooler: bool | None) -> tuple[Any, bool, hub.Preprocessing]:
    """Return the model, whether its pooler is used, and what it wants of patches."""
    if config is None:
        found, wanted = hub.load(source), hub.preprocessing(source)
    else:
        found, wanted = hub.Found(hub.build(source, config), True), hub.Preprocessing()
    model: Any = found.model
    pooler = found.pooled if pooler is None else pooler
    if not pooler and isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return model, pooler, wanted._replace(side=wanted.side or hub.side_of(getattr(model.config, "image_size", None)))


def _check(name: str, model: Any, side: int, channels: int | None) -> tuple[int | None, int]:
    """Return the side of the model's patches and its channels; ConfigError where they do not fit what is asked for."""
    seen = int(getattr(model.config, "num_channels", 3))
    if channels not in (None, seen):
        raise ConfigError(f"{name} has {seen} channels, not {channels}")
    patch = hub.side_of(getattr(model.config, "patch_size", None))
    if patch is not None and side % patch:
        raise ConfigError(f"{name}: base resolution {side} is no multiple of its patches of {patch} px")
    return patch, seen


def _outputs(model: nn.Module, images: Tensor, asked: Mapping[str, Any], prefix: int) -> tuple[Tensor, Tensor]:
    """The vector, and the last features (image, channel, row, column) or tokens (image, token, channel)."""
    given = model(pixel_values=images, **asked)
    hidden: Tensor = given.last_hidden_state
    pooled = getattr(given, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1), hidden
    if hidden.ndim == 4:
        return hidden.mean((2, 3)), hidden
    return hidden[:, 0] if prefix else hidden.mean(1), hidden


def _probe(name: str, model: nn.Module, patch: Tensor, asked: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """What the model makes of one patch: its sizes are not in its configuration."""
    model.eval()
    try:
        with torch.no_grad():
            vector, hidden = _outputs(model, patch, asked, 0)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} cannot encode patches of {patch.shape[3]} px: {reason}") from error
    if hidden.ndim not in (3, 4) or 0 in hidden.shape:
        raise ConfigError(f"{name} gives features of shape {tuple(hidden.shape)}, which are no map")
    return vector, hidden


def _grid(name: str, tokens: int, side: int, patch: int | None) -> tuple[int, int]:
    """How many tokens stand before those of the patches, and how many rows these have."""
    rows = side // patch if patch else 0
    if rows and tokens >= rows * rows:
        return tokens - rows * rows, rows
    # Models that halve their grid on the way have no token but those of the grid.
    rows = math.isqrt(tokens)
    if rows * rows != tokens:
        raise ConfigError(f"{name} gives {tokens} tokens, which are no square grid")
    return 0, rows
