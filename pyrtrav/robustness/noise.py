"""Noise: of the sensor, of few photons, of dead pixels."""

import numpy as np

from pyrtrav.robustness.picture import Picture, Random


def gaussian_noise(picture: Picture, severity: int, random: Random) -> Picture:
    """Electronic noise: the same spread everywhere."""
    spread = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return picture + random.normal(0, spread, picture.shape)


def shot_noise(picture: Picture, severity: int, random: Random) -> Picture:
    """Light counted in photons: so many at full brightness."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return random.poisson(picture * photons) / photons


def impulse_noise(picture: Picture, severity: int, random: Random) -> Picture:
    """Salt and pepper: a share of the values is 0 or 1, each as often as the other."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, salt = random.random((2, *picture.shape))
    return np.where(hit < share, (salt < 0.5).astype(np.float64), picture)
