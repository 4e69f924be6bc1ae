"""Multigrid networks: as an encoder, and those that give an output for every pixel."""

from pyrtrav.encoders.multigrid.encoder import MultigridEncoder
from pyrtrav.encoders.multigrid.pixels import PIXEL_NETWORKS, build_pixel_network
from pyrtrav.encoders.multigrid.zoo import DESIGNS

__all__ = ["DESIGNS", "PIXEL_NETWORKS", "MultigridEncoder", "build_pixel_network"]
