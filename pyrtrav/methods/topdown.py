"""Top-down traversal of an image pyramid with hard attention (the seed method).

Source: "Image classification through top-down image pyramid traversal" (anonymous, under review; later published as
"Hard-Attention for Scalable Image Classification", Papadopoulos, Korus, Memon, NeurIPS 2021).

    paper                               here
    processing level z + 1              depth z
    feature extraction module           encoder: V_n = ``vector``, F_n = ``map``
    location module                     ``Location`` (the policy)
    candidate location, grid of g       cell, edge; ``Grid``
    aggregation module                  ``aggregate``
    merging module (circled plus)       ``merge``
    classification module               ``classify``
    l, p(l | x)                         edges that are on; ``Trace.decision_log_prob``
    p_t (14), p_k (15)                  ``Trace.expected_cells``, ``Trace.mean_by_cell``
    N, M                                images of a batch, ``samples``

Equations implemented: (1) = (13), (2), (3), (4), (5) as stages, (6), (7), (8a), (12), (14), (15).

Differs from the paper:
1. A cell reached through two parents is one region; with ``share_cells`` (default) it is read and encoded once and
   draws its decisions once. p_t then counts distinct cells. ``share_cells=false`` is the paper's tree.
2. The image is centred in a square, never squashed; cells without image area are no candidates and leave every mean.
3. The slope of the leaky ReLU is not stated in the paper; 0.2 is TensorFlow's default.
4. The first batch's mean starts the baseline (12), and a step uses the baseline from before it.
5. c_r is not given in the paper; by default it is the probability at which a policy that favours no place attends
   c_t cells, counted as the paper's tree does (``policy_gradient.probability_for``), and follows c_t while that falls.
6. The default weights (lambda) are not the paper's: with Adam only their ratio and its epsilon matter.
7. REINFORCE compares a draw with the image's other draws (``baseline``); "average" is the paper's (12).
8. The levels of (6) are the prefixes of one sampled traversal, each with its own b.
9. The optimiser is Adam with the paper's epsilon of 1e-8. With weights as small as the paper's 1e-6 and 1e-7 the
   location module's gradients come near it, so that the policy learns at a rate that the ratio to epsilon decides.
10. Two aids for few images, both off with 0: at the start of a stage c_t is higher and falls to its value
   (``explore``), so that the encoder sees enough before the policy has learned; and every attended vector is also
   classified by itself (``lambda_v``), as in the published successor.
11. Where training images carry region hints, the location module is also asked for the cells that hold them
   (``lambda_g``); alone among the terms of the policy this one also reaches the encoder (``hint_encoder``). A share of
   the draws may follow the hints (``guide``): they are no draws of the policy, so that (1), (2) and (3), the baselines
   and the entropy leave them out.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.config import check_range
from pyrtrav.encoders.base import Encoder, Encoding, count_macs, init_xavier
from pyrtrav.encoders.paper import LEAKY_SLOPE
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.methods.base import Method, Metrics, Model, Objective, Stage
from pyrtrav.methods.guidance import (
    Boxes,
    asked_for,
    attached_logit,
    guided_draws,
    guided_images,
    hint_likelihood,
    hints_of,
)
from pyrtrav.methods.lesson import HintLesson
from pyrtrav.policy_gradient import (
    batch_mean,
    cost_penalty,
    diversity_penalty,
    log_likelihood,
    mean_entropy,
    next_baseline,
    others_mean,
    probability_for,
    reinforce,
)
from pyrtrav.ranks import whole_mean
from pyrtrav.sampling import Image, Images, repeat_images
from pyrtrav.selection import Bools, Ints, Settings
from pyrtrav.trace import Trace, take_rows
from pyrtrav.traversal import Generators, Policy, Traversal

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
    """Weight of the mean log-likelihood of every attended vector on its own; 0 is the paper."""
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


class Location(Policy):
    """The location module: one logit a cell, from the whole map; no gradient goes back into the map."""

    def __init__(self, channels: int, map_size: tuple[int, int], grid: Grid, initial_probability: float) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(channels, grid.count, map_size)
        init_xavier(self)
        nn.init.constant_(self.conv.bias, _logit(initial_probability))  # type: ignore[arg-type]

    def logits(self, map_: Float[Tensor, "fixation channel row column"]) -> Float[Tensor, "fixation cell"]:
        logits: Tensor = self.conv(map_)
        return logits.flatten(1)


class LocalLocation(Policy):
    """One logit a cell, from its own part of the map by the same weights, and a bias for its place in the grid.

    Few weights, each of which learns from all cells: where images are few, `Location` learns them by heart.

    Raises:
        ConfigError: cells do not end where positions of the map do.
    """

    def __init__(self, channels: int, map_size: tuple[int, int], grid: Grid, initial_probability: float) -> None:
        super().__init__()
        self.grid = grid
        exact = np.multiply.outer([grid.side, grid.stride], map_size)
        kernel, step = np.rint(exact).astype(np.int64).tolist()
        if not np.allclose(exact, [kernel, step]) or min(kernel + step) == 0:
            raise ConfigError(
                f"location=local needs cells that end where positions of the encoder's map of {map_size[1]} x "
                f"{map_size[0]} do; take a larger map, or location=whole"
            )
        self.conv = nn.Conv2d(channels, 1, kernel, step, bias=False)
        self.bias = nn.Parameter(torch.full((grid.count,), _logit(initial_probability)))
        init_xavier(self)

    def logits(self, map_: Float[Tensor, "fixation channel row column"]) -> Float[Tensor, "fixation cell"]:
        logits: Tensor = self.conv(map_)
        return logits.flatten(1) + self.bias


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


class TopDown(Model):
    """Encoder, location, aggregation, merging and classification modules."""

    def __init__(self, config: TopDownConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config = config
        self.max_depth, self.grid_cells = config.max_depth, config.cells
        grid, size = config.grid, encoder.vector_size
        start = config.initial_probability
        if start is None:
            start = config.even_probability(max(config.max_depth, 1)) if config.max_depth else 0.5
        kind = LocalLocation if config.location == "local" else Location
        location = kind(encoder.map_channels, encoder.map_size, grid, min(max(start, 0.01), 0.99))
        self.traversal = Traversal(encoder, location, config.finest_mpp)
        self.aggregate = nn.Conv2d(size, size, grid.cells)
        self.merge = nn.Linear(2 * size, size)
        self.classify = nn.Linear(size, classes)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)
        for module in (self.aggregate, self.merge, self.classify):
            init_xavier(module)
        self._macs: dict[str, int] | None = None

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        return self.traversal.encoder

    @property
    def location(self) -> Policy:
        return self.traversal.policy

    def policy_weights(self) -> list[nn.Parameter]:
        return list(self.location.parameters())

    def look(self, images: Images, settings: Settings, generator: Generators | None = None) -> Trace:
        trace: Trace = self.traversal(images, settings, generator)
        return trace

    def depth_of(self, image: Image, settings: Settings) -> int:
        return self.traversal.depth_of(image, settings)

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Equation (7) from the bottom up, then the classification module; a part of an image says nothing of it."""
        values = trace.vector
        on = np.flatnonzero(trace.on & (trace.depth[trace.parent] < depth))
        for level in reversed(range(depth)):
            edges = on[trace.depth[trace.parent[on]] == level]
            if len(edges):
                values = self._merge_level(trace, values, edges)
        glances = np.flatnonzero((trace.depth == 0) & trace.alive[trace.image])
        device = values.device
        logits: Tensor = self.classify(values[torch.from_numpy(glances).to(device)])
        full = torch.zeros(trace.images, logits.shape[1], dtype=logits.dtype, device=device)
        return full.index_copy(0, torch.from_numpy(trace.image[glances]).to(device), logits)

    def _merge_level(self, trace: Trace, values: Tensor, edges: Ints) -> Tensor:
        """V'_n of every fixation with an attended cell; the grid's other cells are zero vectors."""
        device, size, cells = values.device, values.shape[1], self.config.cells
        parents, local = np.unique(trace.parent[edges], return_inverse=True)
        slots = torch.from_numpy(local * cells * cells + trace.cell[edges]).to(device)
        children = torch.from_numpy(trace.child[edges]).to(device)
        grids = torch.zeros(len(parents) * cells * cells, size, dtype=values.dtype, device=device)
        grids = grids.index_copy(0, slots, take_rows(values, children))
        grids = grids.view(len(parents), cells, cells, size).permute(0, 3, 1, 2)
        fine = self.activation(self.aggregate(grids)).flatten(1)
        index = torch.from_numpy(parents).to(device)
        merged = self.activation(self.merge(torch.cat([values[index], fine], dim=1)))
        return values.index_copy(0, index, merged)

    def module_macs(self) -> dict[str, int]:
        """Multiply-accumulates of one application of each module."""
        if self._macs is None:
            encoder, size, cells = self.encoder, self.encoder.vector_size, self.config.cells
            device = next(self.parameters()).device
            patch = torch.zeros(1, encoder.channels, encoder.base_resolution, encoder.base_resolution, device=device)
            vector = torch.zeros(1, size, device=device)
            map_ = torch.zeros(1, encoder.map_channels, *encoder.map_size, device=device)
            self._macs = {
                "encoder": count_macs(encoder, patch),
                "location": count_macs(self.location, Encoding(vector, map_)),
                "aggregation": count_macs(self.aggregate, torch.zeros(1, size, cells, cells, device=device)),
                "merging": count_macs(self.merge, torch.zeros(1, 2 * size, device=device)),
                "classification": count_macs(self.classify, vector),
            }
        return self._macs

    def macs(self, trace: Trace) -> list[int]:
        cost = self.module_macs()
        fixations = np.bincount(trace.image, minlength=trace.images)
        located = np.bincount(trace.image[np.unique(trace.parent)], minlength=trace.images)
        merged = np.bincount(trace.image[np.unique(trace.parent[trace.on])], minlength=trace.images)
        total = (
            fixations * cost["encoder"]
            + located * cost["location"]
            + merged * (cost["aggregation"] + cost["merging"])
            + cost["classification"]
        )
        return [int(n) for n in total]


class LearningRule(Objective):
    """Learning rule (4), or (6) where it is asked for, of one stage, negated: a loss."""

    baseline: Tensor

    def __init__(self, config: TopDownConfig, depth: int) -> None:
        super().__init__()
        self.config, self.depth = config, depth
        self.levels = [z for z in range(depth + 1) if z == depth or config.level_weight(z, depth) > 0]
        # b of (12) for each level; NaN until the first batch has been seen.
        self.register_buffer("baseline", torch.full((depth + 1,), torch.nan, dtype=torch.float64))

    def forward(
        self,
        model: TopDown,
        images: Images,
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        left = self.hints_left(progress)
        hints, guided, trace = self._look(model, images, generator, self.config.guide * left)
        target = labels.to(trace.device).repeat_interleave(trace.images // len(images))
        alive = torch.from_numpy(np.flatnonzero(trace.alive)).to(trace.device)
        # The policy's own draws: they alone say what it attends, and train it by their rewards.
        own = trace.alive & ~guided
        shown = own if own.any() else trace.alive
        index = torch.from_numpy(np.flatnonzero(shown)).to(trace.device)
        objective = torch.zeros((), device=trace.device)
        metrics: Metrics = {}
        for z in self.levels:
            logits = model.believe(trace, z)
            reward = log_likelihood(logits, target)
            learned = self.criterion(logits, target)[alive]
            level = batch_mean(learned) + self._attention(trace, reward, own, z, progress)
            objective = objective + self.config.level_weight(z, self.depth) * level
            name = "" if z == self.depth else f"_{z}"
            metrics[f"loss{name}"] = -float(reward.detach()[index].mean())
            metrics[f"accuracy{name}"] = float((logits.argmax(1) == target)[index].double().mean())
        if self.config.lambda_v > 0:
            objective = objective + self.config.lambda_v * self._each_vector(model, trace, target, hints)
        # Asked of all processes, which take the mean together or not at all.
        if self.depth and float(whole_mean(torch.tensor(float(any(hints))), 1)) > 0:
            logit = attached_logit(trace, model.location) if self.config.hint_encoder else trace.logit
            likelihood = hint_likelihood(trace, self.depth, hints, logit, self.config.hint_balance)
            objective = objective + self.config.lambda_g * left * likelihood
            metrics["hint_loss"] = -float(likelihood.detach())
        if trace.truncated.any():
            metrics["truncated"] = float(trace.truncated.mean())
        metrics["cells"] = float(trace.cells_attended(self.depth)[shown].sum() / max(int(shown.sum()), 1))
        return -objective, metrics, trace

    def _look(self, model: TopDown, images: Images, generator: Generators, guide: float) -> tuple[Boxes, Bools, Trace]:
        """Look at every image ``samples`` times; returns each draw's hints, whether it follows them, and the trace."""
        samples = self.config.samples if self.depth else 1
        settings = Settings(select="sample", depth=self.depth, share_cells=self.config.share_cells)
        repeated = repeat_images(images, samples)
        hints = hints_of(repeated)
        guided = guided_images(hints, guide, generator)
        draws = guided_draws(model.traversal, hints, guided, generator) if guided.any() else generator
        return hints, guided, model.look(repeated, settings, draws)

    def hints_left(self, progress: float) -> float:
        """Share of the weight and of the guided draws at a point of the stage; stages count alike."""
        gradual = self.config.gradual and self.depth > 0
        done = (self.depth - 1 + progress) / self.config.max_depth if gradual else progress
        return 1 - (1 - self.config.hint_fall) * done

    def cells_wanted(self, depth: int, progress: float) -> float:
        """c_t of a level at a point of the stage (0 to 1): while exploring it falls in equal ratios from many cells."""
        config, wanted = self.config, self.config.cells_wanted(depth)
        if progress >= config.explore:
            return wanted
        start = max(wanted, min(config.explore_cells * config.cells_on_offer(depth), 3 * wanted))
        return float(start * (wanted / start) ** (progress / config.explore))

    def _each_vector(self, model: TopDown, trace: Trace, target: Tensor, hints: Boxes) -> Tensor:
        """Mean log-likelihood of the labels given an attended cell alone: the encoder learns from every look.

        Where an image has hints, the label is about them: only the cells that show one count.
        """
        hinted = np.array([len(boxes) > 0 for boxes in hints], np.bool_)[trace.image]
        tells = ~hinted | asked_for(trace.region, trace.image, hints)
        below = np.flatnonzero((trace.depth > 0) & trace.alive[trace.image] & tells)
        index = torch.from_numpy(below).to(target.device)
        image = torch.from_numpy(trace.image[below]).to(target.device)
        return batch_mean(self.criterion(model.classify(trace.vector[index]), target[image]))

    def _attention(self, trace: Trace, reward: Tensor, images: Bools, depth: int, progress: float) -> Tensor:
        """The second term of (1), and the regularisers (2) and (3), of some images' runs that stop at ``depth``."""
        edges = torch.tensor(float(len(trace.parent) if images.any() else 0))
        # Asked of all processes, which take every mean together or not at all.
        if depth == 0 or float(whole_mean(edges, 1)) == 0:
            return torch.zeros((), device=reward.device)
        own = torch.from_numpy(np.flatnonzero(images)).to(reward.device)
        reward = reward[own]
        config, baseline = self.config, float(self.baseline[depth])
        known = None if np.isnan(baseline) else baseline
        used = float(batch_mean(reward.detach())) if known is None else known
        self.baseline[depth] = next_baseline(known, reward)
        log_prob = trace.decision_log_prob(depth)[own]
        cells = trace.expected_cells(depth, shared=config.share_cells)[own]
        by_cell = trace.mean_by_cell(depth, config.grid.count, images)
        compared: float | Tensor = used
        if config.baseline == "leave_one_out":
            compared = others_mean(reward, torch.div(own, config.samples, rounding_mode="floor"), used)
        wanted = self.cells_wanted(depth, progress)
        objective = (
            config.lambda_f * reinforce(log_prob, reward, compared)
            + config.lambda_t * cost_penalty(cells, wanted)
            + config.lambda_r * diversity_penalty(by_cell, config.even_probability(depth, wanted))
        )
        if config.lambda_e > 0:
            objective = objective + config.lambda_e * mean_entropy(trace.decision_logit(depth, images))
        return objective


def stages(config: TopDownConfig) -> list[Stage]:
    """Gradual learning (5): one more depth a stage; or all depths at once. Depth 0 alone is plain classification."""
    depths = range(1, config.max_depth + 1) if config.gradual and config.max_depth else [config.max_depth]
    first = [Stage("lesson", 0, HintLesson(config.max_depth, config.hint_balance))] if config.lesson else []
    return first + [Stage(f"depth {depth}", depth, LearningRule(config, depth)) for depth in depths]


METHOD = Method(
    name="topdown",
    paper="Image classification through top-down image pyramid traversal",
    Config=TopDownConfig,
    supports=frozenset({"select", "budget", "cells", "hints"}),
    encoders=None,
    build=TopDown,
    stages=stages,
)
