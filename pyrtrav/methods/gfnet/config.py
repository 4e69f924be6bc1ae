"""How a glance-and-focus model is made and trained: the options of the method."""

from dataclasses import dataclass
from typing import Literal

from pyrtrav.config import check_range


@dataclass(frozen=True)
class GfnetConfig:
    """How a glance-and-focus model is made and trained."""

    looks: int = 5
    """The glance included (T)."""
    downsample: float = 1.0
    """Level-0 pixels, 1 or more, a pixel of a focus patch; in an image too small for that a patch is the whole."""
    finest_mpp: float | None = None
    """Micrometres a pixel of a focus patch, above 0, in images whose mpp is known; None goes by ``downsample``."""
    halvings: int | None = None
    """From the glance to a focus patch at most: patches of large images are then coarser. None sets no such bound."""
    classifier: Literal["recurrent", "cascade"] = "recurrent"
    """A GRU over what was seen, or a linear layer of its own after each look, over all that was seen so far."""
    hidden: int = 256
    """Units of the recurrent classifier; the paper's are 1024, for encoders with vectors of 2048."""
    policy_hidden: int = 256
    """Units of the policy's GRU."""
    encoder_weight: float = 1.0
    """Weight of the loss on each look alone, beside that on all so far (lambda)."""
    deviation: float = 0.1
    """Standard deviation of the Gaussian from which a place is drawn, as a share of the range of places; above 0."""
    discount: float = 0.7
    """What a later reward counts for each look that it is later (gamma), 0 to 1."""
    ratio_clip: float = 0.2
    """How far from 1 the ratio of probabilities may go before its gradient ends (epsilon); above 0, below 1."""
    value_weight: float = 0.5
    """Weight of the critic's squared error (c_1)."""
    passes: int = 1
    """Steps of the optimiser over what a batch's looks brought; the authors take 1."""

    def __post_init__(self) -> None:
        check_range(self, "looks", "downsample", "hidden", "policy_hidden", "passes", least=1)
        check_range(self, "halvings", "encoder_weight", "value_weight", least=0)
        check_range(self, "finest_mpp", "deviation", above=0)
        check_range(self, "discount", least=0, most=1)
        check_range(self, "ratio_clip", above=0, below=1)

    @property
    def max_depth(self) -> int:
        """Looks after the glance."""
        return self.looks - 1
