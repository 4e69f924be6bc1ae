"""The learning rules of the top-down method, as one loss."""

import numpy as np
import torch
from torch import Tensor

from pyrtrav.draws import Generators
from pyrtrav.methods.base import Metrics, Objective
from pyrtrav.methods.topdown.config import TopDownConfig
from pyrtrav.methods.topdown.guidance import (
    Boxes,
    asked_for,
    attached_logit,
    guided_draws,
    guided_images,
    hint_likelihood,
    hints_of,
)
from pyrtrav.methods.topdown.model import TopDown
from pyrtrav.policy_gradient import (
    batch_mean,
    cost_penalty,
    diversity_penalty,
    log_likelihood,
    mean_entropy,
    next_baseline,
    others_mean,
    reinforce,
)
from pyrtrav.ranks import whole_mean
from pyrtrav.sampling import Images, repeat_images
from pyrtrav.selection import Bools, Settings
from pyrtrav.trace import Trace


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
