"""The 15 common corruptions, at 5 severities each.

Source: "Benchmarking neural network robustness to common corruptions and perturbations", Hendrycks and Dietterich, ICLR
2019, with the parameters of its ImageNet-C.

Differs from the paper:
1. Parameters that are lengths were chosen for pictures of 224 pixels. They are multiplied by the shorter side / 224, so
   that a picture of any size is corrupted alike; at 224 they are the published ones.
2. Frost is drawn, not photographed; motion blur is computed here, not by ImageMagick; a warp is one interpolation, not
   two; glass shows each pixel a neighbour's colour rather than exchanging both.
3. All severities of a picture share their draws: more of the same noise, thicker of the same fog.
4. Pictures of one channel too: what is said of colours is said of that channel.
"""

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.robustness import blur, digital, noise, weather
from pyrtrav.robustness.picture import Picture, Random

Corruption = Callable[[Picture, int, Random], Picture]
"""(picture, severity, random) -> picture, which may leave 0..1."""

GROUPS: dict[str, tuple[Corruption, ...]] = {
    "noise": (noise.gaussian_noise, noise.shot_noise, noise.impulse_noise),
    "blur": (blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur),
    "weather": (weather.snow, weather.frost, weather.fog, weather.brightness),
    "digital": (digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression),
}
CORRUPTIONS: dict[str, Corruption] = {each.__name__: each for group in GROUPS.values() for each in group}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(pixels: NDArray[np.uint8], name: str, severity: int, seed: int | tuple[int, ...] = 0) -> NDArray[np.uint8]:
    """Return pixels (height, width, 1 or 3) corrupted; the same for equal arguments.

    Raises:
        ConfigError: no such corruption or severity.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"unknown corruption {name!r}{nearest_name(name, list(CORRUPTIONS))}")
    if severity not in SEVERITIES:
        raise ConfigError(f"a severity is a whole number from 1 to 5, got {severity}")
    own = (seed,) if isinstance(seed, int) else seed
    random = np.random.default_rng([*own, zlib.crc32(name.encode())])
    found = CORRUPTIONS[name](pixels / 255.0, severity, random)
    return np.asarray(np.rint(found.clip(0, 1) * 255), np.uint8)
