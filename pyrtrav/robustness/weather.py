"""Weather: snow, frost on the lens, fog, and bright light."""

import numpy as np
from scipy.spatial import cKDTree

from pyrtrav.robustness.blur import trailed
from pyrtrav.robustness.picture import Picture, Random, magnified, scale_of

_SNOW = (
    # mean and spread of the noise, size of flakes, darkest flake, radius and sigma of their trail, picture's share
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)


def snow(picture: Picture, severity: int, random: Random) -> Picture:
    """Falling flakes before a picture that is paler for them."""
    mean, spread, size, darkest, radius, sigma, share = _SNOW[severity - 1]
    layer = random.normal(mean, spread, (*picture.shape[:2], 1))
    layer = magnified(layer, max(1.0, size * scale_of(picture)))
    layer = np.where(layer < darkest, 0.0, layer).clip(0, 1)
    layer = trailed(layer, radius, sigma, random.uniform(-135, -45))
    pale = np.maximum(picture, gray(picture) * 1.5 + 0.5)
    return share * picture + (1 - share) * pale + layer + layer[::-1, ::-1]


def gray(picture: Picture) -> Picture:
    """Return the luma (ITU-R 601) of a picture, with one channel."""
    return picture if picture.shape[2] == 1 else picture @ np.array([[0.299], [0.587], [0.114]])


def frost(picture: Picture, severity: int, random: Random) -> Picture:
    """Crystals of ice before the picture."""
    share, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width, channels = picture.shape
    return np.asarray(share * picture + ice * _crystals(height, width, channels, random))


_ICE = np.array([0.86, 0.95, 1.0])
"""A slight blue."""


def _crystals(height: int, width: int, channels: int, random: Random) -> Picture:
    """Draw ice: needles along the seams between cells of two sizes, thicker in some places than in others."""
    seams = np.zeros((height, width))
    for cells, strength in ((60, 0.6), (500, 0.4)):
        side = np.sqrt(height * width / cells)
        sites = random.random((cells, 2)) * (height, width)
        bend = [side * (plasma(height, width, 1.7, random) - 0.5) for _ in range(2)]
        place = np.indices((height, width)) + np.stack(bend)
        near, next_ = np.moveaxis(cKDTree(sites).query(place.transpose(1, 2, 0), k=2)[0], 2, 0)
        seams += strength * np.exp(-(next_ - near) / (0.12 * side))
    thick = plasma(height, width, 2.2, random)
    grain = plasma(height, width, 1.25, random)
    ice = (0.25 * grain + 0.9 * thick * (0.35 + seams) ** 0.8).clip(0, 1)
    tint = _ICE if channels == 3 else _ICE.mean(keepdims=True)
    return np.asarray(ice[:, :, None] * tint)


def fog(picture: Picture, severity: int, random: Random) -> Picture:
    """Clouds before the picture, after which the brightest is as bright as before."""
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    brightest = picture.max()
    height, width = picture.shape[:2]
    clouds = plasma(height, width, decay, random)[:, :, None]
    return np.asarray((picture + amount * clouds) * brightest / (brightest + amount))


def plasma(height: int, width: int, decay: float, random: Random) -> Picture:
    """Return a fractal landscape (height, width) in 0..1 by the diamond-square algorithm.

    Args:
        decay: the square root of what the spread is divided by at each halving; more is smoother.
    """
    side = 1 << (max(height, width, 2) - 1).bit_length()
    land = np.zeros((side, side))
    step, wobble = side, 1.0
    while step >= 2:
        half = step // 2
        corners = land[::step, ::step]
        squares = corners + np.roll(corners, -1, 0)
        middles = _wobbled(squares + np.roll(squares, -1, 1), wobble, random)
        land[half::step, half::step] = middles
        above = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        land[::step, half::step] = _wobbled(above, wobble, random)
        land[half::step, ::step] = _wobbled(beside, wobble, random)
        step, wobble = half, wobble / decay**2
    land -= land.min()
    return np.asarray((land / land.max())[:height, :width])


def _wobbled(fours: Picture, wobble: float, random: Random) -> Picture:
    """The means of sums of four, and noise."""
    return np.asarray(fours / 4 + random.uniform(-wobble, wobble, fours.shape))


def brightness(picture: Picture, severity: int, random: Random) -> Picture:
    """More of V in HSV; hue and saturation stay."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = picture.max(2, keepdims=True)
    brighter = (value + more).clip(0, 1)
    black = value == 0
    return np.asarray(np.where(black, brighter, picture * (brighter / np.where(black, 1.0, value))))
