"""One model of the multi-glimpse toy experiments: trained epoch by epoch, then evaluated after each glimpse."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.mgnet_toy import ToyBackbone
from benchmarks.mnist_images import Digits
from pyrtrav.allocator import keep_freed_memory
from pyrtrav.encoders.running import Running
from pyrtrav.files import written_whole
from pyrtrav.methods.mgnet import GlimpseLoss, Mgnet, MgnetConfig
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings
from pyrtrav.training.checkpoint import Checkpoint
from pyrtrav.training.progress import Progress

Dataset = Literal["translated", "gaussian"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
GLIMPSES: dict[str, int] = {"translated": 3, "gaussian": 5}
"""Table 4's longest chains."""

SIDE, GLIMPSE, CLASSES = 112, 28, 10
NOISE = 0.3
"""Standard deviation, of values in 0..1."""


@dataclass(frozen=True)
class Job:
    """A model: what it sees, and how often it looks."""

    dataset: Dataset
    model: str
    """``mgnet``, or ``ff``: one look at all pixels, the paper's feed-forward net."""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.model}-seed{self.seed}"

    @property
    def glimpses(self) -> int:
        return GLIMPSES[self.dataset] if self.model == "mgnet" else 1


@dataclass(frozen=True)
class Schedule:
    """How long and on what: SGD with the paper's one cycle, momentum 0.9 and decay 1e-4 for all."""

    epochs: int
    train_images: int = 55_000
    batch: int = 128
    lr: float = 0.1
    """At the peak, a fifth of the way; cosines from a 25th and to a 250,000th of that."""
    bfloat16: bool = False
    """Convolutions of the training in bfloat16; what is trained is judged in float32."""

    def lr_at(self, done: float) -> float:
        first, last = self.lr / 25, self.lr / 250_000
        if done < 0.2:
            return first + (self.lr - first) * (1 - math.cos(math.pi * done / 0.2)) / 2
        return last + (self.lr - last) * (1 + math.cos(math.pi * (done - 0.2) / 0.8)) / 2


def draw_images(digits: Digits, index: Tensor, dataset: Dataset, generator: torch.Generator) -> Tensor:
    """Return (n, 1, 112, 112) in 0..255: digits at random places, with noise that is clipped."""
    images = digits.images(index, "plain", SIDE, generator, side=SIDE)
    if dataset == "translated":
        return images
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + 255 * NOISE * noise).clamp(0, 255)


def build(job: Job) -> Mgnet:
    """Return the untrained model; its samples are single pixels, as the paper's."""
    torch.manual_seed(job.seed)
    config = MgnetConfig(glimpses=job.glimpses, by_scale=False, small_regions=1.0)
    model = Mgnet(config, ToyBackbone(GLIMPSE if job.model == "mgnet" else SIDE), CLASSES)
    return model.eval()


class Run:
    """Training one job in a folder."""

    def __init__(self, job: Job, schedule: Schedule, data: tuple[Digits, Digits], folder: Path, device: str) -> None:
        self.job, self.schedule, self.folder = job, schedule, folder
        self.train_digits, self.validation_digits = data
        self.device = torch.device(device)
        self.model = build(job).to(self.device)
        self.loss = GlimpseLoss(self.model.config)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=schedule.lr, momentum=0.9, weight_decay=1e-4)

    def train(self, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train what is left and judge; None where it had to stop before the end."""
        keep_freed_memory()
        path = self.folder / f"{self.job.name}.checkpoint.safetensors"
        checkpoint = Checkpoint(path, repr((self.job, self.schedule)), self.model, self.optimizer, [])
        at = checkpoint.load()[0] if path.exists() else Progress()
        self.model.encoder.running = Running(bfloat16=self.schedule.bfloat16)
        for epoch in range(at.epoch, self.schedule.epochs):
            if should_stop():
                return None
            begun = time.perf_counter()
            metrics = self._epoch(epoch)
            at = Progress(epoch=epoch + 1, seconds=at.seconds + time.perf_counter() - begun)
            checkpoint.save(at)
            print(f"{self.job.name}  {epoch + 1}/{self.schedule.epochs}  {metrics}  {at.seconds:.0f} s", flush=True)
        self.model.encoder.running = Running(bfloat16=False)
        weights = {name: value.cpu().contiguous() for name, value in self.model.state_dict().items()}
        with written_whole(self.folder / f"{self.job.name}.safetensors") as beside:
            safetensors.torch.save_file(weights, beside)
        found = {"name": self.job.name, **asdict(self.job), "seconds": round(at.seconds), **self.evaluate()}
        path.unlink(missing_ok=True)
        return found

    def _epoch(self, epoch: int) -> dict[str, float]:
        schedule, digits = self.schedule, self.train_digits
        own = torch.Generator(self.device).manual_seed(self.job.seed * 1000 + epoch)
        order = torch.randperm(schedule.train_images, generator=own, device=self.device)
        steps = len(order) // schedule.batch
        last: list[dict[str, float]] = []
        for step in range(steps):
            done = (epoch + step / steps) / schedule.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = schedule.lr_at(done)
            index = order[step * schedule.batch : (step + 1) * schedule.batch]
            images = draw_images(digits, index, self.job.dataset, own)
            loss, metrics, _ = self.loss(self.model, ImageStack(images), digits.labels[index], own)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            last = [*last[-49:], metrics]
        return {name: round(sum(each[name] for each in last) / len(last), 4) for name in last[-1]}

    @torch.inference_mode()
    def evaluate(self, batch: int = 250) -> dict[str, Any]:
        """Accuracy and multiply-accumulates after each glimpse on the validation digits, each at a new place."""
        digits, glimpses = self.validation_digits, self.job.glimpses
        own = torch.Generator(self.device).manual_seed(1_000_000 + self.job.seed)
        right = torch.zeros(glimpses)
        for index in torch.split(torch.arange(len(digits), device=self.device), batch):
            images = draw_images(digits, index, self.job.dataset, own)
            right += (believe(self.model, images).argmax(2) == digits.labels[index]).sum(1).cpu()
        macs = []
        for depth in range(glimpses):
            trace = self.model.look(ImageStack(images[:1]), Settings("all", depth=depth))
            macs.append(self.model.macs(trace)[0])
        return {"accuracies": [round(value, 4) for value in (right / len(digits)).tolist()], "macs": macs}


def believe(model: Mgnet, images: Tensor) -> Tensor:
    """Return the logits after each glimpse (glimpse, image, class) of images (image, 1, height, width) in 0..255."""
    depths = range(model.max_depth + 1)
    trace = model.look(ImageStack(images), Settings("all", depth=model.max_depth))
    return torch.stack([model.believe(trace, depth) for depth in depths])
