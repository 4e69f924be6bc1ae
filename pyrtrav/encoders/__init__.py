"""Encoders: from a patch to a vector and a map. A new one is a file and a line in `ENCODERS`."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from pyrtrav.encoders.base import Encoder, Encoding, count_macs, init_xavier
from pyrtrav.encoders.classifier import LinearClassifier
from pyrtrav.encoders.multigrid import MultigridEncoder
from pyrtrav.encoders.multires import MultiresEncoder
from pyrtrav.encoders.paper import PAPER_ENCODERS, Baseline, FullyConnectedHead, PaperEncoder
from pyrtrav.encoders.pretrained import PretrainedEncoder
from pyrtrav.encoders.residual import ResidualEncoder
from pyrtrav.errors import ConfigError, nearest_name

__all__ = [
    "ENCODERS",
    "Baseline",
    "Encoder",
    "Encoding",
    "FullyConnectedHead",
    "LinearClassifier",
    "MultigridEncoder",
    "MultiresEncoder",
    "PaperEncoder",
    "PretrainedEncoder",
    "ResidualEncoder",
    "build_encoder",
    "count_macs",
    "find_encoder",
    "init_xavier",
]

ENCODERS: dict[str, Callable[..., Encoder]] = {
    **{name: partial(PaperEncoder, name) for name in PAPER_ENCODERS},
    "residual": ResidualEncoder,
    "multigrid": MultigridEncoder,
    "multires": MultiresEncoder,
}
"""Builders by name; all their options are keywords and have defaults."""

PRETRAINED = "hf:"
"""Begins the name of an image model of `transformers`; what follows is its name or its folder."""


def find_encoder(name: str) -> Callable[..., Encoder]:
    """Return the builder of an encoder; ConfigError with the nearest name where there is none."""
    if name.startswith(PRETRAINED) and name != PRETRAINED:
        return partial(PretrainedEncoder, name.removeprefix(PRETRAINED))
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}{nearest_name(name, [*ENCODERS, PRETRAINED + 'NAME'])}")
    return ENCODERS[name]


def build_encoder(name: str, *, channels: Any = None, base_resolution: Any = None, **options: Any) -> Encoder:
    """Return the encoder ``name`` with new weights; ``None`` is the encoder's own default; values may come from a file.

    Raises:
        ConfigError: an unknown name or option, or one that the encoder cannot have.
    """
    build = find_encoder(name)
    sizes = {"channels": channels, "base_resolution": base_resolution}
    options |= {option: value for option, value in sizes.items() if value is not None}
    known = list(inspect.signature(build).parameters)
    for option in options:
        if option not in known:
            raise ConfigError(f"unknown option {option!r} of encoder {name}{nearest_name(option, known)}")
    try:
        return build(**options)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"encoder {name} cannot be built with {options}: {error}") from error
