"""The encoders that are compared in `topdown`, at about the parameters of the paper's first ImageNet module."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """An encoder and what of `topdown` it needs; options as of ``--set``."""

    encoder: str
    small: tuple[str, ...] = ()
    """Of the encoder, for patches of 32 px."""
    large: tuple[str, ...] | None = None
    """Likewise for 64 px; None where it has none of that size."""
    method: tuple[str, ...] = ()


_SMALL, _LARGE = ("width=0.21",), ("width=0.181",)
_MIXED = ("filters=101", "blocks=4", "stride=4", "resolutions=3")
_CHANNEL, _PATCH, _BATCH = ("norm=channel",), ("norm=patch",), ("norm=batch",)

ARMS = {
    "paper": Arm("imagenet-m1"),
    "residual": Arm("residual", ("widths=[18,36,72,140]",), ("widths=[18,36,72,140]",)),
    "multigrid": Arm("multigrid", _SMALL + _CHANNEL, _LARGE + _CHANNEL),
    "multigrid-patch": Arm("multigrid", _SMALL + _PATCH, _LARGE + _PATCH),
    "multigrid-batch": Arm("multigrid", _SMALL + _BATCH, _LARGE + _BATCH),
    "multires": Arm("multires", _MIXED + _CHANNEL, _MIXED + _CHANNEL),
    "multires-batch": Arm("multires", _MIXED + _BATCH, _MIXED + _BATCH),
    "multigrid-tree": Arm("multigrid", _SMALL + _CHANNEL, None, ("share_cells=false",)),
    "multigrid-parent": Arm("multigrid", _SMALL + _CHANNEL, None, ("share_cells=false", "context=parent")),
}
"""Networks of these two kinds normalise over the channels of each position where their name does not say otherwise.

The last two differ in context alone: what a parent's patch adds is their difference. It is not measured on the scenes:
most of that training is a lesson, whose places have no parents. ``multires`` trains filters and mixing weights
together, on all data.
"""
