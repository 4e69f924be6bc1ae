"""One network of the multigrid paper's tasks with an output for every pixel: trained with checkpoints, then tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.pixel_scenes import SIDE, TASKS, Scenes, batches
from benchmarks.pixel_scores import Scores
from pyrtrav.encoders.base import count_macs
from pyrtrav.encoders.multigrid import build_pixel_network
from pyrtrav.files import written_whole
from pyrtrav.training.checkpoint import Checkpoint
from pyrtrav.training.progress import Progress


@dataclass(frozen=True)
class Job:
    """A network and what it learns."""

    task: str
    """Of `TASKS`."""
    network: str
    """Of `PIXEL_NETWORKS`."""
    seed: int = 0
    """Of the first weights and of the order of scenes; all jobs have the same scenes."""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.network}-seed{self.seed}"


SHORT_LR = 3e-3
"""Adam's first step in short runs."""


@dataclass(frozen=True)
class Schedule:
    """How long and on what; the paper's values but for ``iterations`` (30,000 or 160,000).

    Momentum and loss, which it does not print, are as in the authors' code.
    """

    iterations: int
    train_scenes: int
    test_scenes: int
    batch: int = 64
    lr: float = 0.1
    """Of the first iteration."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bfloat16: bool = False
    """Convolutions of the training in bfloat16; what is trained is tested in float32."""
    short: bool = False
    """For runs in which the paper's descent would hardly learn that most pixels have no label: Adam at `SHORT_LR`,
    falling evenly to zero for all networks, and outputs that begin at the labels' share."""

    def lr_at(self, done: float, residual: bool) -> float:
        """The step after a share of all iterations.

        From 0.1 to 0.0001 exponentially; of residual networks a fifth from 60, 120 and 160 of 200 epochs on.
        """
        if self.short:
            return SHORT_LR * (1 - done)
        if residual:
            return self.lr * float(0.2 ** sum(done >= share for share in (0.3, 0.6, 0.8)))
        return self.lr * float(0.001**done)


class Run:
    """Training one job in a folder.

    Args:
        scenes: for training and for the test; at least as many as the schedule says.
    """

    def __init__(self, job: Job, schedule: Schedule, scenes: tuple[Scenes, Scenes], folder: Path) -> None:
        self.job, self.schedule, self.folder = job, schedule, folder
        self.train_scenes, self.test_scenes = scenes
        self.device = self.train_scenes.which.device
        torch.manual_seed(job.seed)
        self.model = build_pixel_network(job.network, outputs=TASKS[job.task].outputs).to(self.device)
        self.layout = layout_of(self.device)
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer: torch.optim.Optimizer
        if schedule.short:
            self._begin_at_the_share()
            self.optimizer = torch.optim.Adam(self.model.parameters(), SHORT_LR)
        else:
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), schedule.lr, schedule.momentum, weight_decay=schedule.weight_decay
            )

    def train(self, every: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train what is left and test; None where it had to stop before the end.

        Args:
            every: iterations from checkpoint to checkpoint.
        """
        path = self.folder / f"{self.job.name}.checkpoint.safetensors"
        checkpoint = Checkpoint(path, repr((self.job, self.schedule)), self.model, self.optimizer, [])
        progress = checkpoint.load()[0] if path.exists() else Progress()
        while progress.step < self.schedule.iterations:
            if should_stop():
                return None
            begun = time.perf_counter()
            until = min(progress.step + every, self.schedule.iterations)
            loss = sum(self._step(number) for number in range(progress.step, until)) / (until - progress.step)
            seconds = time.perf_counter() - begun
            each = seconds / (until - progress.step)
            progress.step, progress.seconds, progress.totals = until, progress.seconds + seconds, {"loss": loss}
            checkpoint.save(progress)
            print(
                f"{self.job.name}  {until}/{self.schedule.iterations}  loss {loss:.4f}  {each:.2f} s each", flush=True
            )
        found = self.test()
        weights = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        with written_whole(self.folder / f"{self.job.name}.safetensors") as beside:
            safetensors.torch.save_file(weights, beside)
        path.unlink(missing_ok=True)
        one = torch.zeros(1, 1, SIDE, SIDE, device=self.device)
        cost = {
            "loss": progress.totals["loss"],
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "macs": count_macs(self.model.eval(), one),
            "seconds": round(progress.seconds, 1),
        }
        return asdict(self.job) | {"name": self.job.name} | found | cost

    def _begin_at_the_share(self) -> None:
        """Let the last bias say how many pixels have each label."""
        _, targets = self.train_scenes.batch(torch.arange(min(256, self.schedule.train_scenes), device=self.device))
        *_, last = (
            bias
            for name, bias in self.model.get_submodule("output").named_parameters()
            if name.endswith("norms.0.bias")
        )
        with torch.no_grad():
            last.copy_(torch.logit(targets.mean((0, 2, 3)), 1e-3))

    def _step(self, number: int) -> float:
        """Take a step on scenes that depend on its number alone; returns the loss."""
        schedule = self.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr_at(number / schedule.iterations, self.job.network.startswith("R-"))
        draws = torch.Generator().manual_seed(self.job.seed * 1_000_003 + number)
        index = torch.randint(schedule.train_scenes, (schedule.batch,), generator=draws).to(self.device)
        images, targets = self.train_scenes.batch(index)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=schedule.bfloat16):
            logits = self.model(images.contiguous(memory_format=self.layout))
        loss = binary_cross_entropy_with_logits(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    @torch.inference_mode()
    def test(self) -> dict[str, float]:
        """Return the scores on the test scenes."""
        self.model.eval()
        scores = Scores(TASKS[self.job.task].outputs)
        for index in batches(self.schedule.test_scenes, self.schedule.batch, self.device):
            images, targets = self.test_scenes.batch(index)
            scores.add(self.model(images.contiguous(memory_format=self.layout)), targets)
        return scores.values()


def layout_of(device: torch.device) -> torch.memory_format:
    """Return the layout of weights and images.

    Channels last is the faster one, on a GPU and by a seventh on one thread of a CPU; on several threads narrow grids
    are not safe in it (see NARROWEST_CHANNELS_LAST).
    """
    if device.type == "cuda" or torch.get_num_threads() == 1:
        return torch.channels_last
    return torch.contiguous_format
