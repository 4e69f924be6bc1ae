"""`topdown` trained on digits in memory, epoch by epoch with a checkpoint after each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoders_arms import ARMS
from benchmarks.mnist_images import Digits, load_digits
from benchmarks.mnist_train import CLASSES, Schedule
from pyrtrav.config import make_config, parse_assignments
from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.running import Running
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.sampling import ImageStack
from pyrtrav.training.checkpoint import Checkpoint
from pyrtrav.training.progress import Progress

SIDE = 128
DRAWS = 4
"""Evaluations of every image, each with draws of its own; digits also have new places."""
OPTIONS = {"max_depth": 2, "c_t": (2.5, 5.0), "multi_level": True, "level_weights": (0.1, 0.3, 1.0)}
BATCH = 32
VALIDATION = 1000


class DigitRun:
    """One arm on the digits."""

    def __init__(self, job: Any, digits: tuple[Digits, Digits], device: str) -> None:
        arm = ARMS[job.arm]
        torch.manual_seed(job.seed)
        own = {} if arm.encoder.startswith("imagenet") else {"base_resolution": 32, **parse_assignments(arm.small)}
        config = make_config(TopDownConfig, OPTIONS | parse_assignments(arm.method))
        self.job, self.device = job, torch.device(device)
        self.model = TopDown(config, build_encoder(arm.encoder, **own), CLASSES).to(self.device)
        self.rule = LearningRule(config, config.max_depth).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=job.lr)
        self.training_digits, self.validation_digits = digits
        self.seconds = 0.0

    def images(self, digits: Digits, index: Tensor, generator: torch.Generator) -> ImageStack:
        """Return new images of digits, in three equal channels."""
        gray = digits.images(index, "plain", SIDE, generator, side=SIDE)
        return ImageStack(gray.expand(-1, 3, -1, -1).contiguous())

    def epoch(self, number: int) -> dict[str, float]:
        """One pass over so many digits; returns the last metrics' means."""
        job, digits = self.job, self.training_digits
        schedule = Schedule(job.epochs, lr=job.lr)
        own = torch.Generator(self.device).manual_seed(job.seed * 1000 + number)
        draws = torch.Generator().manual_seed(job.seed * 1000 + number)
        order = torch.randperm(len(digits), generator=own, device=self.device)[: job.images]
        steps, totals = len(order) // BATCH, dict[str, float]()
        self.model.train()
        for step in range(steps):
            done = (number + step / steps) / job.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.lr_at(done)
            index = order[step * BATCH : (step + 1) * BATCH]
            images = self.images(digits, index, own)
            loss, metrics, _ = self.rule(self.model, images, digits.labels[index], draws, done)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value / steps
        return totals

    def validation(self) -> Iterator[tuple[ImageStack, Tensor]]:
        """Yield the first validation digits, several times, at new places each."""
        digits = self.validation_digits
        own = torch.Generator(self.device).manual_seed(1_000_000 + self.job.seed)
        for _ in range(DRAWS):
            for index in torch.split(torch.arange(VALIDATION, device=self.device), 100):
                yield self.images(digits, index, own), digits.labels[index]


def train_on_digits(job: Any, folder: Path, source: Path, device: str) -> DigitRun:
    """Train what is left of a job, the encoder in bfloat16 if the job says so."""
    run = DigitRun(job, load_digits(source, device), device)
    run.model.encoder.running = Running(job.bfloat16)
    path = folder / "checkpoint.safetensors"
    checkpoint = Checkpoint(path, repr(job), run.model, run.optimizer, [run.rule])
    at = checkpoint.load()[0] if path.exists() else Progress()
    for number in range(at.epoch, job.epochs):
        begun = time.perf_counter()
        metrics = run.epoch(number)
        at = Progress(epoch=number + 1, seconds=at.seconds + time.perf_counter() - begun)
        checkpoint.save(at)
        figures = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        print(f"  {number + 1}/{job.epochs}  {figures}  {at.seconds:.0f} s", flush=True)
    run.seconds = at.seconds
    run.model.encoder.running = Running(bfloat16=False)
    return run
