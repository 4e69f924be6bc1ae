"""What trains the encoders and the classifier, and what trains the policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyrtrav.draws import Generators
from pyrtrav.methods.base import Metrics, Objective
from pyrtrav.methods.chain import chains
from pyrtrav.methods.gfnet.config import GfnetConfig
from pyrtrav.methods.gfnet.model import Gfnet, Rollout
from pyrtrav.policy_gradient import batch_mean
from pyrtrav.ppo import discounted_returns, gaussian_log_prob, normalised, ppo_objective
from pyrtrav.sampling import Images
from pyrtrav.selection import Select, Settings
from pyrtrav.trace import Trace


class LookLoss(Objective):
    """Stages 0, 1 and 3: the classifier's cross entropy after every look, and each encoder's own, at given places."""

    def __init__(self, config: GfnetConfig, depth: int, select: Select) -> None:
        """``select`` says who chooses the places."""
        super().__init__()
        self.config, self.depth, self.select = config, depth, select

    def forward(
        self, model: Any, images: Images, labels: Tensor, generator: Generators, progress: float = 1.0
    ) -> tuple[Tensor, Metrics, Trace]:
        assert isinstance(model, Gfnet)
        trace = model.look(images, Settings(self.select, depth=self.depth), generator)
        target = labels_of(trace, labels)
        vectors = model.seen(trace, chains(trace, self.depth)[1])
        logits = model.classify(vectors)
        loss = -self._score(logits, target) - self.config.encoder_weight * self._score(model.judge(vectors), target)
        return loss, metrics_of(logits, target), trace

    def _score(self, logits: Float[Tensor, "image look label"], target: Int[Tensor, " image"]) -> Tensor:
        """The mean over looks of what they are worth."""
        return batch_mean(torch.stack([self.criterion(each, target) for each in logits.unbind(1)], dim=1).mean(1))


class PolicyLoss(Objective):
    """Stage 2: the policy alone, by proximal policy optimization.

    The reward of a look is by how much it raises the probability of the true class.
    """

    def __init__(self, config: GfnetConfig) -> None:
        super().__init__()
        self.config = config
        self.passes = config.passes

    def forward(
        self, model: Any, images: Images, labels: Tensor, generator: Generators, progress: float = 1.0
    ) -> tuple[Tensor, Metrics, Trace]:
        assert isinstance(model, Gfnet)
        depth = self.config.max_depth
        with torch.no_grad(), evaluating(model):
            trace, rollout = model.follow(images, Settings("sample", depth=depth), generator)
            logits = model.classify(model.seen(trace, chains(trace, depth)[1]))
        target = labels_of(trace, labels)
        reward = gains(logits, target)
        returns = normalised(discounted_returns(reward, self.config.discount))
        log_prob, value = self._judge(model, rollout)
        old = log_prob.detach()
        self.again = lambda: self._loss(*self._judge(model, rollout), old, returns)
        metrics = metrics_of(logits, target) | {"reward": float(reward.sum(1).mean())}
        return self._loss(log_prob, value, old, returns), metrics, trace

    def _judge(self, model: Gfnet, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The log-probability of each action by the policy as it is now, and the values; both (image, step)."""
        mean, value = model.propose.retrace(rollout.maps)
        return gaussian_log_prob(torch.stack(rollout.actions, dim=1), mean, self.config.deviation), value

    def _loss(self, log_prob: Tensor, value: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        clip, weight = self.config.ratio_clip, self.config.value_weight
        return -batch_mean(ppo_objective(log_prob, old, value, returns, clip=clip, value_weight=weight).mean(1))


def gains(logits: Float[Tensor, "image look label"], target: Int[Tensor, " image"]) -> Float[Tensor, "image step"]:
    """Return by how much each look after the glance raised the probability of the true class."""
    own = target[:, None, None].expand(-1, logits.shape[1], 1)
    return torch.softmax(logits, dim=2).gather(2, own)[:, :, 0].diff(dim=1)


def labels_of(trace: Trace, labels: Tensor) -> Int[Tensor, " image"]:
    """Return the labels of the images without an error."""
    return labels.to(trace.device)[torch.from_numpy(np.flatnonzero(trace.alive)).to(trace.device)]


def metrics_of(logits: Float[Tensor, "image look label"], target: Int[Tensor, " image"]) -> Metrics:
    """Return loss and accuracy after the last look."""
    final = logits[:, -1].detach()
    log_p = torch.log_softmax(final, dim=1).gather(1, target[:, None])
    return {"loss": -float(log_p.mean()), "accuracy": float((final.argmax(1) == target).double().mean())}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Use the model in the block as it is used after training: it draws nothing, and no statistics move."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
