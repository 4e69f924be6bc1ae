"""One optimiser step. Everything random in it follows from the image and the step, not from what went before.

So a step gives the same whoever takes it: a run that was resumed, or the process that holds this image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrtrav import ranks
from pyrtrav.errors import PyramidError
from pyrtrav.methods import Model, Stage
from pyrtrav.selection import Floats, Ints
from pyrtrav.trace import Trace
from pyrtrav.training.augment import random_view
from pyrtrav.training.data import Example
from pyrtrav.training.hints import Hints
from pyrtrav.training.images import OpenImages
from pyrtrav.training.options import TrainingConfig

Key = tuple[int, ...]
"""Names a place in a run, such as (seed, stage, epoch, image): the seed of what is random there."""


_OTHER = 1 << 20
"""Above any number of samples."""


@dataclass(frozen=True)
class Member:
    """An image of a batch, and the key of its draws."""

    example: Example
    key: Key


@dataclass(frozen=True)
class StepReport:
    """What one step did."""

    totals: dict[str, float] = field(default_factory=dict)
    """Each metric's sum over the images that have it."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many those are: the images that could be read, of the parts of the batch in which there was such a metric."""
    seen: int = 0
    """Images that could be read."""
    failed: dict[str, str] = field(default_factory=dict)
    """Those that could not, and why."""

    def __add__(self, other: StepReport) -> StepReport:
        names = {**self.totals, **other.totals}
        totals = {name: self.totals.get(name, 0.0) + other.totals.get(name, 0.0) for name in names}
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
        return StepReport(totals, counts, self.seen + other.seen, {**self.failed, **other.failed})


class ImageDraws:
    """Uniforms for a traversal: each image, and each of its samples, has a generator of its own."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = list(keys)
        self._generators: list[np.random.Generator] = []

    def __call__(self, trace: Trace, parents: Ints, cell: Ints) -> Floats:
        """Return uniforms on the edge axis; ``trace`` holds each image in a run of samples."""
        if not self._generators:
            samples = trace.images // len(self.keys)
            self._generators = [np.random.default_rng([*key, 1 + i]) for key in self.keys for i in range(samples)]
        image = trace.image[parents]
        draws = np.empty(len(image))
        for number in np.unique(image).tolist():
            own = image == number
            draws[own] = self._generators[number].random(int(own.sum()))
        return draws

    def own(self, image: int, images: int, count: int, purpose: int) -> Floats:
        """Return uniforms for something else than cells (see ``traversal.own_draws``)."""
        samples = images // len(self.keys)
        return np.random.default_rng([*self.keys[image // samples], _OTHER + purpose, image % samples]).random(count)


class Stepper:
    """Takes steps of one stage: from examples to moved weights."""

    def __init__(
        self,
        model: Model,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        images: OpenImages,
        config: TrainingConfig,
        hints: Hints | None = None,
    ) -> None:
        self.model, self.stage, self.optimizer = model, stage, optimizer
        self.images, self.config, self.hints = images, config, hints or Hints()

    def step(self, batch: Sequence[Member], progress: float) -> StepReport:
        """Move the weights; ``progress`` (0 to 1) is the stage's. Nothing moves where no image can be read."""
        self.optimizer.zero_grad(set_to_none=True)
        done = StepReport()
        again: list[tuple[Callable[[], Tensor], int]] = []
        for part in range(self.config.accumulate):
            mine = batch[part :: self.config.accumulate][ranks.rank() :: ranks.count()]
            report = self._part(mine, progress)
            if report.seen and self.stage.objective.again is not None:
                again.append((self.stage.objective.again, report.seen))
            done += report
        self._move(done.seen)
        for _ in range(1, self.stage.objective.passes):
            self.optimizer.zero_grad(set_to_none=True)
            for loss_of, seen in again:
                loss = loss_of() * seen
                loss.backward()  # type: ignore[no-untyped-call]
            self._move(done.seen)
        return done

    def _move(self, seen: int) -> None:
        """Take a step of the optimiser along the gradients, which are sums over the images seen."""
        ranks.add_gradients(self.model.parameters())
        if not seen:
            return
        for weight in self.model.parameters():
            if weight.grad is not None:
                weight.grad /= seen
        policy = self.model.policy_weights()
        chosen = {id(weight) for weight in policy}
        for weights in (policy, [weight for weight in self.model.parameters() if id(weight) not in chosen]):
            torch.nn.utils.clip_grad_norm_(weights, self.config.clip)
        self.optimizer.step()

    def _part(self, batch: Sequence[Member], progress: float) -> StepReport:
        """Add the gradients of a part of the batch, times its images; ``batch`` is this process's share of it."""
        views, labels, keys, failed = self._open(batch)
        if not all(ranks.gather(len(views))):
            # A process that sees nothing could take no part in the others' means.
            return _over_ranks(StepReport(failed=failed))
        loss, metrics, trace = self.stage.objective(self.model, views, labels, ImageDraws(keys), progress)
        samples = trace.images // len(views)
        for number, error in enumerate(trace.errors):
            if error is not None:
                failed[views[number // samples].path] = str(error)
        seen = int(trace.alive.sum()) // samples
        known = metrics if seen else {}
        totals = {name: value * seen for name, value in known.items()}
        done = _over_ranks(StepReport(totals, dict.fromkeys(known, seen), seen, failed))
        if done.seen and loss.requires_grad:
            (loss * done.seen).backward()
        return done

    def _open(self, batch: Sequence[Member]) -> tuple[list[Any], Tensor, list[Key], dict[str, str]]:
        """Views of the images that can be opened, their labels and keys; and why the others cannot."""
        pyramids, errors = self.images.open_all([member.example.path for member in batch])
        base, config = self.model.encoder.base_resolution, self.config
        views, labels, keys = [], [], []
        for member, pyramid in zip(batch, pyramids, strict=True):
            if pyramid is None:
                continue
            random = np.random.default_rng([*member.key, 0])
            hints = self.hints.of(member.example.path, pyramid)
            view = random_view(
                pyramid,
                base,
                random,
                turn=config.turn,
                mirror=config.mirror,
                shift=config.shift,
                jitter=config.jitter,
                hed=config.hed,
                hints=hints,
            )
            views.append(view)
            labels.append(member.example.label)
            keys.append(member.key)
        return views, torch.tensor(labels), keys, _messages(errors)


def _over_ranks(own: StepReport) -> StepReport:
    """The sum of what all processes did."""
    reports = ranks.gather([own.totals, own.counts, own.seen, own.failed])
    return reduce(StepReport.__add__, (StepReport(*report) for report in reports))


def _messages(errors: dict[str, PyramidError]) -> dict[str, str]:
    return {path: str(error) for path, error in errors.items()}
