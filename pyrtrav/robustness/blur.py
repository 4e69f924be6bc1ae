"""Blur: a lens out of focus, frosted glass, and a camera that moves or zooms."""

from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from pyrtrav.robustness.picture import Picture, Random, magnified, scale_of


def defocus_blur(picture: Picture, severity: int, random: Random) -> Picture:
    """Every point becomes a disk."""
    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    kernel = disk(radius * scale_of(picture), softness)
    return convolved(picture, kernel, "reflect")


def disk(radius: float, softness: float) -> Picture:
    """Return a disk of sum 1 as an array of odd sides, its rim softened by a Gaussian of a pixel or two."""
    margin = 1 if radius <= 8 else 2
    reach = int(np.ceil(radius)) + margin
    along = np.arange(-reach, reach + 1)
    # A rim between two pixels counts by its share: published radii are whole numbers, scaled ones are not.
    distance = np.hypot(along, along[:, None])
    full = (distance <= radius).astype(np.float64)
    if not float(radius).is_integer():
        full = np.clip(radius + 0.5 - distance, 0, 1)
    soft = gaussian_filter(full, softness, radius=margin, mode="constant")
    return np.asarray(soft / soft.sum())


def glass_blur(picture: Picture, severity: int, random: Random) -> Picture:
    """Blurred, each pixel shown where a neighbour was, again and again, and blurred."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    scale = scale_of(picture)
    height, width = picture.shape[:2]
    reach = max(1, round(reach * scale))
    found = gaussian_filter(picture, sigma * scale, axes=(0, 1))
    row, column = np.indices((height, width))
    for _ in range(rounds):
        down, across = random.integers(-reach, reach + 1, (2, height, width))
        found = found[(row + down).clip(0, height - 1), (column + across).clip(0, width - 1)]
    return np.asarray(gaussian_filter(found, sigma * scale, axes=(0, 1)))


def motion_blur(picture: Picture, severity: int, random: Random) -> Picture:
    """A trail in one direction."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return trailed(picture, radius, sigma, random.uniform(-45, 45))


def trailed(picture: Picture, radius: float, sigma: float, degrees: float) -> Picture:
    """Return a picture in which each point is the mean of those that lie before it in a direction.

    Weights are half a Gaussian; lengths are the published ones, and scaled here.
    """
    scale = scale_of(picture)
    count = 2 * round(radius * scale) + 1
    weights = np.exp(-(np.arange(count) ** 2) / (2 * max(sigma * scale, 1e-3) ** 2))
    angle = np.deg2rad(degrees)
    steps = np.ceil(np.outer(np.arange(count), (np.sin(angle), np.cos(angle))) - 0.5).astype(np.int64)
    reach = int(np.abs(steps).max())
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    # A convolution turns its kernel round.
    np.add.at(kernel, (reach - steps[:, 0], reach - steps[:, 1]), weights / weights.sum())
    return convolved(picture, kernel, "edge")


def convolved(picture: Picture, kernel: Picture, beyond: Literal["edge", "reflect"]) -> Picture:
    """Return a picture convolved with a kernel of odd sides; ``beyond`` says what lies outside, as `numpy.pad` does."""
    reach = len(kernel) // 2
    wide = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), beyond)
    return np.asarray(fftconvolve(wide, kernel[:, :, None], mode="valid", axes=(0, 1)))


def zoom_blur(picture: Picture, severity: int, random: Random) -> Picture:
    """The mean of the picture and of itself magnified more and more."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, most, step)
    total = picture.copy()
    for factor in factors.tolist():
        total += magnified(picture, factor)
    return np.asarray(total / (len(factors) + 1))
