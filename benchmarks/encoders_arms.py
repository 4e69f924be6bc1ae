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

ARMS = {
    "paper": Arm("imagenet-m1"),
    "residual": Arm("residual", ("widths=[18,36,72,140]",), ("widths=[18,36,72,140]",)),
    "multigrid": Arm("multigrid", _SMALL, _LARGE),
    "multires": Arm("multires", _MIXED, _MIXED),
    "multigrid-patch": Arm("multigrid", (*_SMALL, "norm=patch"), (*_LARGE, "norm=patch")),
    "multigrid-batch": Arm("multigrid", (*_SMALL, "norm=batch"), (*_LARGE, "norm=batch")),
    "multires-patch": Arm("multires", (*_MIXED, "norm=patch"), (*_MIXED, "norm=patch")),
    "multires-batch": Arm("multires", (*_MIXED, "norm=batch"), (*_MIXED, "norm=batch")),
    "multigrid-tree": Arm("multigrid", _SMALL, None, ("share_cells=false",)),
    "multigrid-parent": Arm("multigrid", _SMALL, None, ("share_cells=false", "context=parent")),
}
"""The last two differ in context alone: what a parent's patch adds is their difference. It is not measured on the
scenes: most of that training is a lesson, whose places have no parents. ``multires`` trains filters and mixing weights
together, on all data."""
