"""Random colours for training images: jitter as of cameras and scanners, and as of stains.

Colour jitter takes kornia's brightness, contrast and saturation; hue turns the chroma plane of
ITU-R 601 instead of going through HSV, so that all four together are one affine map an image: on a CPU that is about
thirty times faster than kornia's four calls, of which hue alone would take as long as a small encoder's training step.
Contrast pivots at black and never at a patch's own mean, in which patches of one image differ.

Stain jitter is that of Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference
to train distilled stain-invariant convolutional networks" (2018): the amounts of haematoxylin, eosin and DAB are
multiplied and shifted at random. Differs from the paper: amounts are in natural units of optical density without an
offset, so that a shift of one stain by 0.05 takes at most 5 % of the light.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyrtrav.colours import Colours, Map
from pyrtrav.errors import ConfigError
from pyrtrav.pyramid.pixels import LUMA

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of one unit of haematoxylin, eosin and DAB (Ruifrok and Johnston, 2001)."""

HUE = math.pi / 2
"""Radians that a jitter of 1 would turn hues by: 4.5 degrees at 0.05, 36 at 0.4."""

_TO_YUV = np.array([LUMA, 0.492 * (np.array([0, 0, 1]) - LUMA), 0.877 * (np.array([1, 0, 0]) - LUMA)])


def random_colours(random: np.random.Generator, channels: int, *, jitter: float, hed: float) -> Colours | None:
    """Draw the colours of one image; None where neither strength is above 0.

    Args:
        jitter: brightness varies by up to half of it (of the full range), contrast and saturation by up to this
            fraction, hue by up to ``HUE`` times it. A gray image has brightness and contrast only.
        hed: by how much, at most, the amount of each stain is multiplied (around 1) and shifted.

    Raises:
        ConfigError: stains of a gray image.
    """
    if hed > 0 and channels != 3:
        raise ConfigError(f"hed changes stains, which need images of 3 channels, not {channels}; set hed=0")
    density = value = None
    if hed > 0:
        density = stain_map(random.uniform(1 - hed, 1 + hed, 3), random.uniform(-hed, hed, 3))
    if jitter > 0:
        brightness, contrast, saturation, hue = random.uniform(-jitter, jitter, 4).tolist()
        value = colour_map(channels, brightness / 2, 1 + contrast, 1 + saturation, HUE * hue)
    return None if density is None and value is None else Colours(density, value)


def colour_map(channels: int, brightness: float, contrast: float, saturation: float, hue: float) -> Map:
    """Return saturation and hue, then contrast, then brightness as one map of values in 0..1.

    Args:
        brightness: added.
        contrast: factor.
        saturation: factor of the distance to gray (ITU-R 601 luma); only with 3 channels.
        hue: radians; only with 3 channels.
    """
    matrix = np.eye(channels)
    if channels == 3:
        cosine, sine = saturation * math.cos(hue), saturation * math.sin(hue)
        chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
        matrix = np.linalg.solve(_TO_YUV, chroma @ _TO_YUV)
    return np.column_stack([contrast * matrix, np.full(channels, brightness)])


def stain_map(gain: NDArray[np.float64], offset: NDArray[np.float64]) -> Map:
    """Return the map of optical densities that multiplies and shifts the amounts of the three stains."""
    amounts = np.linalg.inv(STAINS.T)
    return np.column_stack([STAINS.T @ np.diag(gain) @ amounts, STAINS.T @ offset])
