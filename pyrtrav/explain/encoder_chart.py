"""The picture of an encoder: its effective receptive field, and the mixing weights of one that learned its scales."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrtrav.explain.charting import FAINT, save_chart, style
from pyrtrav.explain.output import check_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MASS = 0.95
"""Share of all weight that the square in the picture holds."""


def save_encoder_chart(
    seen: NDArray[np.float64],
    mixing: NDArray[np.float64] | None,
    outputs: tuple[int, ...],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw an encoder as PNG or PDF, whole or not at all.

    Args:
        seen: weight of each pixel of a patch (row, column), 0..1.
        mixing: weights (layer, resolution), or None.
        outputs: layers, from 0, whose outputs are mixed.
        path: ends in ``.png`` or ``.pdf``.
        title: what encoder it is.

    Raises:
        ConfigError: another name.
    """
    check_picture(path)
    with style():
        save_chart(_figure(seen, mixing, outputs, title), path, title)


def save_structures_chart(
    structures: Mapping[str, tuple[NDArray[np.float64], tuple[int, ...]]],
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw several networks' mixing weights side by side, two a line, as PNG or PDF, whole or not at all.

    Args:
        structures: by what they are called: weights (layer, resolution), and the layers whose outputs are mixed.
        path: ends in ``.png`` or ``.pdf``.
        title: what they have in common.

    Raises:
        ConfigError: another name.
    """
    from matplotlib.figure import Figure

    check_picture(path)
    lines, longest = -(-len(structures) // 2), max(len(mixing) for mixing, _ in structures.values())
    with style():
        figure = Figure(figsize=(2 * max(4.9, 0.5 * longest), 0.7 + 3.1 * lines), layout="constrained")
        figure.suptitle(title, fontsize=12)
        panels = list(figure.subplots(lines, 2, squeeze=False).flat)
        for axes, (name, (mixing, outputs)) in zip(panels, structures.items(), strict=False):
            _draw_mixing(figure, axes, mixing, outputs, name)
        for axes in panels[len(structures) :]:
            axes.set_visible(False)
        save_chart(figure, path, title)


def _figure(
    seen: NDArray[np.float64], mixing: NDArray[np.float64] | None, outputs: tuple[int, ...], title: str
) -> Figure:
    from matplotlib.figure import Figure

    widths = [5.6] if mixing is None else [5.6, max(4.9, 0.5 * len(mixing))]
    figure = Figure(figsize=(sum(widths), 5.4), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_seen(figure, axes[0], seen)
    if mixing is not None:
        _draw_mixing(figure, axes[1], mixing, outputs, "mixing weights of each layer's filters")
    return figure


def _draw_seen(figure: Figure, axes: Axes, seen: NDArray[np.float64]) -> None:
    from matplotlib.patches import Rectangle

    side = len(seen)
    left, top, width = square_of_mass(seen)
    # The square root shows what weighs little too.
    image = axes.imshow(np.sqrt(seen), cmap="cividis", vmin=0, vmax=1, extent=(0, side, side, 0))
    axes.add_patch(Rectangle((left, top), width, width, fill=False, edgecolor="white", linewidth=1.5))
    axes.set(xlabel="pixels of a patch", ylabel="pixels of a patch")
    axes.set_title(
        f"what the feature in the middle sees\n(the square of {width} px holds {MASS:.0%} of the weight)",
        fontsize=10,
        color=FAINT,
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "0.05", "0.25", "0.5", "1"])
    bar.set_label("weight, of the greatest")


def square_of_mass(seen: NDArray[np.float64]) -> tuple[int, int, int]:
    """Return left, top and side of the smallest square around the centre of mass that holds MASS of the weight."""
    total, side = seen.sum(), len(seen)
    places = np.arange(side)
    middle_y, middle_x = (round(float((seen.sum(axis) * places).sum() / max(total, 1e-300))) for axis in (1, 0))
    for width in range(1, side + 1):
        left = min(max(middle_x - width // 2, 0), side - width)
        top = min(max(middle_y - width // 2, 0), side - width)
        if seen[top : top + width, left : left + width].sum() >= MASS * total:
            break
    return left, top, width


def _draw_mixing(figure: Figure, axes: Axes, mixing: NDArray[np.float64], outputs: tuple[int, ...], title: str) -> None:
    layers, resolutions = mixing.shape
    image = axes.imshow(mixing.T, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    for layer, resolution in np.ndindex(layers, resolutions):
        value = mixing[layer, resolution]
        if value >= 0.005:
            ink = "white" if value > 0.6 else "black"
            axes.text(layer, resolution, f"{value:.2f}".lstrip("0"), ha="center", va="center", color=ink, fontsize=7)
    marked = set(outputs)
    axes.set_xticks(range(layers), [f"{layer + 1}{'*' if layer in marked else ''}" for layer in range(layers)])
    axes.set_yticks(range(resolutions), ["1" if r == 0 else f"1/{2**r}" for r in range(resolutions)])
    axes.set(xlabel="layer (*: its output is used)", ylabel="resolution")
    axes.set_title(title, fontsize=10, color=FAINT)
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("weight")
