"""How a top-down model is made and trained: the options of the method."""

from dataclasses import dataclass
from typing import Literal

from pyrtrav.config import check_range
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.policy_gradient import probability_for

MOST_DEPTH = 32
"""No image has that many halvings."""


@dataclass(frozen=True)
class TopDownConfig:
    """How a top-down model is made and trained."""

    max_depth: int = 2
    """Greatest depth: max_depth + 1 processing levels; 0 to 32."""
    cells: int = 3
    """Candidate cells along one side of a fixation's grid."""
    side: float = 0.5
    """Side of a cell as a fraction of its parent's."""
    share_cells: bool = True
    """Look once at a cell that two parents attend."""
    context: Literal["none", "parent"] = "none"
    """What the encoder sees of a cell's surroundings: nothing, or what its parent's patch shows of them, which is in
    memory; then a cell's vector depends on its parent, and ``share_cells`` is off."""
    finest_mpp: float | None = None
    """Micrometres a patch pixel, above 0, below which no image is followed; None goes down to level 0."""
    c_t: float | tuple[float, ...] = 12.0
    """Cells to attend an image on average, the glance not counted. One value counts those down to the greatest depth;
    where the model offers no more cells than that, it aims at half of them. Or one value a depth, each of which counts
    all cells down to that depth: they never fall, and each is below the number of cells on offer."""
    c_r: float | None = None
    """Average probability aimed at for each place in the grid, between 0 and 1; None derives it from c_t."""
    location: Literal["whole", "local"] = "whole"
    """What a cell's probability follows from: the ``whole`` map (the paper), or the cell's own part of it."""
    initial_probability: float | None = 0.5
    """Probability of every cell before training, between 0 and 1: 0.5 is the paper's zero bias; None takes c_r."""
    lambda_f: float = 1.0
    """Weight of REINFORCE."""
    lambda_t: float = 0.1
    """Weight of the distance to c_t."""
    lambda_r: float = 0.01
    """Weight of the distance to c_r."""
    baseline: Literal["average", "leave_one_out"] = "leave_one_out"
    """What a draw's reward is compared with: the moving average (12), or the image's other draws."""
    lambda_v: float = 0.3
    """Weight of the mean log-likelihood given one attended cell alone; in images with hints, one that shows a hint.
    0 is the paper."""
    explore: float = 0.3
    """Share of each stage over which c_t falls from ``explore_cells`` to its value; 0 is the paper."""
    explore_cells: float = 0.5
    """Share of all cells on offer to attend at the start of exploring, but at most three times c_t."""
    samples: int = 2
    """Monte Carlo samples an image (M)."""
    lambda_e: float = 0.0
    """Weight of the mean entropy of a decision, which keeps a policy from being sure early; 0 is the paper."""
    gradual: bool = False
    """Train depth by depth (5) rather than all depths from the start."""
    multi_level: bool = False
    """Train the predictions of all depths (6), so that one model can stop at any; else the deepest one's alone."""
    level_weights: float | tuple[float, ...] = 1.0
    """lambda_z of (6): one for all depths, or one each from 0 to ``max_depth``; a stage uses those that it reaches,
    of which one is above 0."""

    lambda_g: float = 1.0
    """Weight of the log-likelihood of what region hints ask for, where images have hints; else it does nothing."""
    hint_balance: float = 1.0
    """How many needless looks a missed hint weighs: above 1 an unsure policy looks rather than not."""
    hint_encoder: bool = True
    """Let hints train the encoder too: features made for labels alone hardly show a policy where to look."""
    guide: float = 0.0
    """Share of the draws, of images with hints, that attend what the hints ask for beside what the policy draws."""
    lesson: bool = False
    """Begin with a stage that learns from places around the hints at all depths, before any traversal."""
    hint_fall: float = 1.0
    """Share of ``lambda_g`` and ``guide`` that is left at the end of the last stage; they fall evenly over stages."""

    def __post_init__(self) -> None:
        check_range(self, "max_depth", least=0, most=MOST_DEPTH)
        check_range(self, "cells", least=2, most=1000)
        check_range(self, "side", above=1e-6, below=1)
        check_range(self, "samples", least=1)
        weights = ("lambda_f", "lambda_t", "lambda_r", "lambda_v", "lambda_e", "lambda_g", "level_weights")
        check_range(self, *weights, least=0)
        check_range(self, "explore", "explore_cells", "guide", "hint_fall", least=0, most=1)
        check_range(self, "c_r", "initial_probability", above=0, below=1)
        check_range(self, "c_t", "finest_mpp", "hint_balance", above=0)
        for name in ("share_cells", "lesson"):
            if getattr(self, name) and self.grid.ratio is None:
                raise ConfigError(f"cells of side {self.side} lie on no lattice; {name} needs a whole 1/side")
        if self.context == "parent" and self.share_cells:
            raise ConfigError("context=parent makes a cell's vector depend on its parent; set share_cells=false too")
        self._check_cells()
        self._check_levels()

    def _check_cells(self) -> None:
        """Refuse a tuple of c_t that no traversal could keep to."""
        if not isinstance(self.c_t, tuple):
            return
        if len(self.c_t) != self.max_depth:
            raise ConfigError(
                f"c_t has {len(self.c_t)} values for {self.max_depth} depths below the glance, got {self.c_t}"
            )
        if list(self.c_t) != sorted(self.c_t):
            raise ConfigError(f"c_t must not fall, as each value counts all cells down to its depth; got {self.c_t}")
        for depth, cells in enumerate(self.c_t, 1):
            if cells >= self.cells_on_offer(depth):
                raise ConfigError(
                    f"c_t of depth {depth} must be below {self.cells_on_offer(depth)}, all cells down to there, "
                    f"got {self.c_t}"
                )

    def _check_levels(self) -> None:
        """Refuse weights of levels that would leave a stage nothing to learn."""
        if isinstance(self.level_weights, tuple) and len(self.level_weights) != self.max_depth + 1:
            raise ConfigError(
                f"level_weights has {len(self.level_weights)} values for {self.max_depth + 1} depths, glance included"
            )
        # Later stages have the levels of the first one too.
        first = min(1, self.max_depth) if self.gradual else self.max_depth
        if not any(self.level_weight(depth, first) > 0 for depth in range(first + 1)):
            raise ConfigError(
                f"level_weights must be above 0 for some depth from 0 to {first}, or the stage down to there learns "
                f"nothing; got {self.level_weights}"
            )

    @property
    def grid(self) -> Grid:
        return Grid(self.cells, self.side)

    def cells_wanted(self, depth: int) -> float:
        """c_t of a stage that goes down to ``depth``."""
        if isinstance(self.c_t, tuple):
            return self.c_t[depth - 1]
        offered = self.cells_on_offer(self.max_depth)
        # Asked for every cell and more, a policy would have nothing to choose.
        wanted = self.c_t if self.c_t < offered else offered / 2
        p = probability_for(wanted, self.grid.count, self.max_depth)
        return float(sum((self.grid.count * p) ** z for z in range(1, depth + 1)))

    def level_weight(self, depth: int, stage_depth: int) -> float:
        """lambda_z of (6) in a stage that goes down to ``stage_depth``; without (6) only its last depth counts."""
        if not self.multi_level:
            return float(depth == stage_depth)
        return self.level_weights[depth] if isinstance(self.level_weights, tuple) else self.level_weights

    def cells_on_offer(self, depth: int) -> int:
        """All cells down to a depth: distinct places where they are shared, else paths."""
        if self.share_cells:
            # Where cells leave gaps, no path leads to some positions.
            return sum(min(self.grid.positions(z), self.cells**z) ** 2 for z in range(1, depth + 1))
        return sum(self.grid.count**z for z in range(1, depth + 1))

    def even_probability(self, depth: int, wanted: float | None = None) -> float:
        """c_r of a stage that goes down to ``depth``, and attends ``wanted`` cells; by default c_t."""
        if self.c_r is not None:
            return self.c_r
        return probability_for(self.cells_wanted(depth) if wanted is None else wanted, self.grid.count, depth)
