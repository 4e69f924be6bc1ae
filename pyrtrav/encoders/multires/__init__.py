"""Networks that learn their filters' sizes, as an encoder, and their pruning."""

from pyrtrav.encoders.multires.encoder import MultiresEncoder, Parts
from pyrtrav.encoders.multires.prune import prune, prune_to_one

__all__ = ["MultiresEncoder", "Parts", "prune", "prune_to_one"]
