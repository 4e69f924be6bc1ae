"""From stored samples to the pixels that a model sees: 8 bits, one or three channels, alpha over the
background.

The rule, in this order, the same for every backend:

1. Above 8 bits a *window* (low, high) maps linearly to 0..255: the caller's, else the file's own, else the
   0.1 to 99.9 percentiles of the coarsest stored level, else the type's range.
2. Alpha goes over the background; where it is 0 the pixel is not valid.
3. One channel from RGB is ITU-R 601 luma; three from gray is repetition; of more than three samples the first
   three are taken, unless ``channels`` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, PyramidError

# Pixels that are converted at once.
_BLOCK_PIXELS = 1 << 18

LUMA = np.array([0.299, 0.587, 0.114])

Window = tuple[float, float]
Channels = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a stored pixel holds."""

    colors: int
    """Samples that are not alpha; 1 is gray, 3 is RGB."""
    dtype: np.dtype[Any]
    alpha: Literal["none", "straight", "premultiplied"] = "none"
    window: Window | None = None
    """The file's own display range, for more than 8 bits."""


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """ITU-R 601 luma of (..., 3), as (..., 1)."""
    return np.asarray(rgb[..., :3] @ LUMA)[..., None]


def check_channels(channels: Channels | None) -> tuple[int, tuple[int, ...] | None]:
    """Return how many channels the model gets and, where given, which stored samples they are."""
    if channels is None:
        return 3, None
    chosen = None if isinstance(channels, int) else tuple(int(c) for c in channels)
    count = channels if isinstance(channels, int) else len(channels)
    if count not in (1, 3) or (chosen and min(chosen) < 0):
        raise ConfigError(f"channels must be 1, 3, or one or three sample numbers from 0, got {channels!r}")
    return count, chosen


def wanted_samples(colors: int, channels: Channels | None) -> tuple[int, ...]:
    """Return the numbers of the stored samples that the model sees, of ``colors`` that are not alpha."""
    _, chosen = check_channels(channels)
    return chosen or tuple(range(3 if colors >= 3 else colors))


def to_uint8(samples: NDArray[Any], window: Window | None) -> NDArray[np.uint8]:
    """Map samples to 0..255 by the window; 8-bit samples without one stay as they are."""
    if samples.dtype == np.bool_:
        return samples.astype(np.uint8) * np.uint8(255)
    if window is None:
        if samples.dtype == np.uint8:
            return samples
        window = type_range(samples.dtype)
    low, high = window
    scaled = (samples.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)


def type_range(dtype: np.dtype[Any]) -> Window:
    """The whole range of an integer type; 0..1 for floats."""
    if dtype.kind in "ui":
        info = np.iinfo(dtype)
        return float(info.min), float(info.max)
    return 0.0, 1.0


def display_window(values: Sequence[NDArray[Any]]) -> Window | None:
    """The 0.1 to 99.9 percentiles of the finite values; None where all are the same."""
    joined = np.concatenate(values) if values else np.zeros(0)
    finite = joined[np.isfinite(joined)]
    low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if high > low else None


@dataclass(frozen=True, slots=True)
class PixelRule:
    """How one file's samples become model pixels; it stands in every record."""

    samples: Samples
    channels: int
    chosen: tuple[int, ...] | None
    window: Window | None
    background: tuple[int, ...]
    """Of the model's channels, 0..255."""

    def check(self, path: str) -> None:
        """Raise PyramidError where the file cannot give what the model wants; another image may."""
        colors = self.samples.colors
        if self.chosen is not None and max(self.chosen) >= colors:
            raise PyramidError(
                f"{path}: channels {list(self.chosen)} are asked for, but it holds {colors} (numbered from 0)"
            )
        if self.chosen is None and colors == 2:
            raise PyramidError(
                f"{path}: it holds two channels, which make no gray and no RGB; say which with channels="
            )

    def apply(self, raw: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Return model pixels (h, w, channels) and, where the file has alpha, which of them are valid."""
        if self.samples.alpha == "none" and self._is_plain(raw):
            return (raw if raw.flags.c_contiguous else np.ascontiguousarray(raw)), None
        height, width = raw.shape[:2]
        alpha = None if self.samples.alpha == "none" else to_uint8(raw[..., -1], None)
        if alpha is not None and alpha.min() == 255:
            alpha = None
        if alpha is None and self._is_plain(raw):
            return np.ascontiguousarray(raw), None
        pixels = np.empty((height, width, self.channels), np.uint8)
        rows = max(1, _BLOCK_PIXELS // width)  # the arithmetic is in float64, eight times the memory
        for top in range(0, height, rows):
            block = slice(top, top + rows)
            pixels[block] = self._pixels(raw[block], None if alpha is None else alpha[block])
        return pixels, None if alpha is None else alpha > 0

    def _is_plain(self, raw: NDArray[Any]) -> bool:
        """Whether the samples are the model's pixels already."""
        as_stored = raw.dtype == np.uint8 and self.window is None and self.chosen is None
        return as_stored and raw.shape[-1] == self.channels

    def _pixels(self, raw: NDArray[Any], alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """Gray is left as it is: three channels of it are made where it is assigned."""
        if self.chosen is not None:
            picked = raw[..., list(self.chosen)]
        else:
            picked = raw[..., : 3 if self.samples.colors >= 3 else 1]
        pixels = to_uint8(picked, self.window)
        if self.channels == 1 and pixels.shape[-1] == 3:
            pixels = np.rint(luma(pixels)).astype(np.uint8)
        if alpha is None:
            return pixels
        share = alpha[..., None] / 255.0
        own = pixels if self.samples.alpha == "premultiplied" else pixels * share
        over = own + (1 - share) * np.asarray(self.background, np.float64)
        return np.rint(np.clip(over, 0, 255)).astype(np.uint8)
