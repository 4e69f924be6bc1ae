"""One model of the MNIST experiments: trained epoch by epoch with a checkpoint after each, then evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.mnist_images import Digits, Variant
from pyrtrav.allocator import keep_freed_memory
from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.base import count_macs
from pyrtrav.encoders.paper import Baseline
from pyrtrav.files import written_whole
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings
from pyrtrav.training.checkpoint import Checkpoint
from pyrtrav.training.progress import Progress

CLASSES = 10


@dataclass(frozen=True)
class Job:
    """A model: what it is, what it sees, and what it starts from."""

    variant: Variant
    pair: int
    """i of M_i and BL_i: 1, 2 or 3."""
    model: str
    """``M`` or ``BL``."""
    resolution: int
    """14, 28 or 56 px."""
    c_t: float | None = None
    start: str = "scratch"
    """``scratch``, or ``gradual``: from the model of half the resolution."""
    seed: int = 0
    options: tuple[tuple[str, Any], ...] = ()
    """Of TopDownConfig, beside the paper's."""

    @property
    def name(self) -> str:
        cells = "" if self.c_t is None else f"-c{self.c_t:g}"
        more = "".join(f"-{name}={value}" for name, value in self.options)
        return f"{self.variant}-{self.model}{self.pair}-{self.resolution}{cells}-{self.start}{more}-seed{self.seed}"


@dataclass(frozen=True)
class Schedule:
    """How long and on what; the paper's values but for ``epochs`` (70) and ``draws`` (20)."""

    epochs: int
    train_images: int = 55_000
    batch: int = 128
    lr: float = 0.01
    draws: int = 20
    """Evaluations on the validation images, each with new places, noise and backgrounds."""

    def lr_at(self, done: float) -> float:
        """The step after a share of all steps: a fifth from 80 %, a twenty-fifth from 90 %."""
        return self.lr * (0.04 if done >= 0.9 else 0.2 if done >= 0.8 else 1.0)


PAPER = {
    "share_cells": False,
    "lambda_f": 1e-6,
    "lambda_t": 1e-7,
    "lambda_r": 1e-7,
    "baseline": "average",
    "lambda_v": 0.0,
    "explore": 0.0,
    "samples": 2,
}
"""Appendix A.5.2."""


SCALED: dict[str, dict[str, float]] = {"textured": {"mean": 0.5, "std": 0.5}}
"""Values of 0..1 that an encoder takes as -1..1, as the paper says of ImageNet; of MNIST it says nothing. On grass no
model learns from 0..1 in three epochs at the paper's rate: BL2 stays at chance."""


def build(job: Job) -> nn.Module:
    """Return the untrained model."""
    torch.manual_seed(job.seed)
    encoder = build_encoder(f"mnist-m{job.pair}", **SCALED.get(job.variant, {}))
    if job.model == "BL":
        return Baseline(encoder, CLASSES)
    depth = {14: 0, 28: 1, 56: 2}[job.resolution]
    options: dict[str, Any] = PAPER | dict(job.options) | {"max_depth": depth}
    if job.c_t is not None:
        options["c_t"] = job.c_t
    return TopDown(TopDownConfig(**options), encoder, CLASSES)


class Run:
    """Training one job in a folder."""

    def __init__(self, job: Job, schedule: Schedule, data: tuple[Digits, Digits], folder: Path, device: str) -> None:
        self.job, self.schedule, self.folder = job, schedule, folder
        self.train_digits, self.validation_digits = data
        self.device = torch.device(device)
        self.model: Any = build(job).to(self.device)
        self.rule: LearningRule | None = None
        if isinstance(self.model, TopDown):
            self.rule = LearningRule(self.model.config, self.model.max_depth).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=schedule.lr)

    def train(self, parent: Path | None, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train what is left and evaluate; None where it had to stop before the end.

        Args:
            parent: weights to start from.
        """
        keep_freed_memory()
        objectives = [self.rule] if self.rule is not None else []
        path, identity = self.folder / f"{self.job.name}.checkpoint.safetensors", repr((self.job, self.schedule))
        checkpoint = Checkpoint(path, identity, self.model, self.optimizer, objectives)
        first = 0
        if path.exists():
            first = checkpoint.load()[0].epoch
        elif parent is not None:
            self.model.load_state_dict(safetensors.torch.load_file(parent), strict=True)
        seconds = 0.0
        for epoch in range(first, self.schedule.epochs):
            if should_stop():
                return None
            begun = time.perf_counter()
            metrics = self._epoch(epoch)
            seconds = time.perf_counter() - begun
            checkpoint.save(Progress(epoch=epoch + 1))
            print(f"{self.job.name}  {epoch + 1}/{self.schedule.epochs}  {metrics}  {seconds:.0f} s", flush=True)
        found = self.evaluate()
        weights = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        with written_whole(self.folder / f"{self.job.name}.safetensors") as beside:
            safetensors.torch.save_file(weights, beside)
        path.unlink(missing_ok=True)
        return asdict(self.job) | {"name": self.job.name, **found, "epoch_seconds": round(seconds, 1)}

    def _epoch(self, epoch: int) -> dict[str, float]:
        digits, schedule = self.train_digits, self.schedule
        own = torch.Generator(self.device).manual_seed(self.job.seed * 1000 + epoch)
        draws = torch.Generator().manual_seed(self.job.seed * 1000 + epoch)
        order = torch.randperm(schedule.train_images, generator=own, device=self.device)
        steps = len(order) // schedule.batch
        totals: dict[str, float] = {}
        for step in range(steps):
            done = (epoch + step / steps) / schedule.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.lr_at(done)
            index = order[step * schedule.batch : (step + 1) * schedule.batch]
            images = digits.images(index, self.job.variant, self.job.resolution, own)
            loss, metrics = self._loss(images, digits.labels[index], draws, done)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if step >= steps - 50:
                totals = {name: totals.get(name, 0.0) + value / min(50, steps) for name, value in metrics.items()}
        return {name: round(value, 4) for name, value in totals.items()}

    def _loss(
        self, images: Tensor, labels: Tensor, draws: torch.Generator, done: float
    ) -> tuple[Tensor, dict[str, float]]:
        if self.rule is None:
            loss = cross_entropy(self.model(images / 255), labels)
            return loss, {"loss": float(loss.detach())}
        loss, metrics, _ = self.rule(self.model, ImageStack(images), labels, draws, done)
        return loss, metrics

    @torch.inference_mode()
    def evaluate(self, batch: int = 500) -> dict[str, Any]:
        """Accuracy, cells and multiply-accumulates an image: means over draws, and the draws' accuracies."""
        digits = self.validation_digits
        own = torch.Generator(self.device).manual_seed(1_000_000 + self.job.seed)
        draws = torch.Generator().manual_seed(1_000_000 + self.job.seed)
        accuracies, cells, macs = [], 0.0, 0.0
        for _ in range(self.schedule.draws):
            right = 0
            for index in torch.split(torch.arange(len(digits), device=self.device), batch):
                images = digits.images(index, self.job.variant, self.job.resolution, own)
                logits, attended, spent = self._believe(images, draws)
                right += int((logits.argmax(1) == digits.labels[index]).sum())
                cells += attended
                macs += spent
            accuracies.append(right / len(digits))
        count = len(digits) * self.schedule.draws
        return {
            "accuracy": sum(accuracies) / len(accuracies),
            "accuracies": accuracies,
            "cells": cells / count,
            "macs": macs / count,
        }

    def _believe(self, images: Tensor, draws: torch.Generator) -> tuple[Tensor, float, float]:
        """Logits, and attended cells and multiply-accumulates of all images together."""
        model = self.model
        if not isinstance(model, TopDown):
            return model(images / 255), 0.0, float(count_macs(model, images[:1]) * len(images))
        settings = Settings(select="sample", depth=model.max_depth, share_cells=model.config.share_cells)
        trace = model.look(ImageStack(images), settings, draws)
        cells = trace.cells_attended(model.max_depth)
        return model.believe(trace, model.max_depth), float(cells.sum()), float(sum(model.macs(trace)))
