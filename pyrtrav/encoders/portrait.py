"""What an encoder is like inside: how far it sees, and at which resolutions its filters work."""

import os
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyrtrav.encoders.base import Encoder
from pyrtrav.encoders.multires.encoder import MultiresEncoder
from pyrtrav.explain.encoder_chart import save_encoder_chart
from pyrtrav.explain.output import check_picture

PATCHES = 32
"""Of noise, over which the receptive field is averaged."""


class Portrait(NamedTuple):
    """Figures of an encoder for a picture."""

    seen: Float[Tensor, "row column"]
    """How much each pixel of a patch weighs in the feature at the middle of its map, 1 where most."""
    mixing: Float[Tensor, "layer resolution"] | None
    """Mixing weights of an encoder that has some (learned filter sizes, figure 3)."""
    outputs: tuple[int, ...]
    """The layers whose outputs are mixed, of such an encoder."""


def portrait(encoder: Encoder, *, seed: int = 0) -> Portrait:
    """Return an encoder's effective receptive field and mixing weights.

    The field is the mean size of the gradient of the features in the middle of the map, in random directions of theirs,
    with respect to the pixels, over patches of uniform noise ("Understanding the Effective Receptive Field in Deep
    Convolutional Neural Networks", Luo et al., 2016). Their sum would be no measure: normalised features have none.
    """
    seen = _seen(encoder, torch.Generator().manual_seed(seed))
    if isinstance(encoder, MultiresEncoder):
        return Portrait(seen, encoder.mixing_table().detach().cpu(), encoder.outputs)
    return Portrait(seen, None, ())


def save_portrait(encoder: Encoder, path: str | os.PathLike[str], title: str) -> None:
    """Draw an encoder's portrait as PNG or PDF, whole or not at all.

    Raises:
        ConfigError: the name ends in neither ``.png`` nor ``.pdf``, or its folder cannot be written to.
    """
    check_picture(path)
    found = portrait(encoder)
    mixing = None if found.mixing is None else found.mixing.numpy()
    save_encoder_chart(found.seen.numpy(), mixing, found.outputs, path, title)


def _seen(encoder: Encoder, generator: torch.Generator) -> Tensor:
    side, weight = encoder.base_resolution, next(iter(encoder.parameters()))
    training = encoder.training
    encoder.eval()
    total = torch.zeros(side, side, dtype=torch.float64)
    try:
        for _ in range(PATCHES):
            patch = torch.rand(1, encoder.channels, side, side, generator=generator).to(weight)
            patch.requires_grad_(True)
            features = encoder(patch).map
            middle = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
            direction = torch.randn(len(middle), generator=generator).to(middle)
            (gradient,) = torch.autograd.grad(middle @ direction, patch)
            total += gradient[0].abs().sum(0).double().cpu()
    finally:
        encoder.train(training)
    return total / total.max().clamp(min=torch.finfo(torch.float64).tiny)
