"""One network of the experiments on learned filter sizes: trained epoch by epoch, then tested.

A training step is two, on two parts of the training data: stochastic gradient descent changes the filters by a batch of
the first part, Adam the mixing weights by a batch of the second one. What has no mixing weights to learn is trained on
the first part alone, so that all arms' filters see the same images.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.cifar_images import SIDE, Pictures
from benchmarks.filters_jobs import DEPTH, ONE, Job, parent_of
from pyrtrav.encoders import LinearClassifier, MultiresEncoder, build_encoder, count_macs
from pyrtrav.encoders.multires import prune, prune_to_one
from pyrtrav.encoders.running import Running
from pyrtrav.errors import ConfigError
from pyrtrav.files import written_whole
from pyrtrav.training.checkpoint import Checkpoint
from pyrtrav.training.progress import Progress


@dataclass(frozen=True)
class Schedule:
    """How long and on what. The paper gives epochs, the form of the rates, and what concerns mixing weights."""

    epochs: int = 400
    finetune_epochs: int = 40
    """Of a network that was pruned; a tenth of ``epochs`` unless asked otherwise."""
    images: int = 50_000
    """First images of the training set: four fifths for the filters, a fifth for the mixing weights."""
    batch: int = 128
    mixing_batch: int = 128
    """Images of the second part for each batch of the first one."""
    lr: float = 0.1
    """At the start; it falls to zero along a cosine."""
    finetune_lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    mixing_lr: float = 1e-4
    """The paper's, for its 125,000 steps or so (at 128 images); no mixing weight goes much further than steps times
    rate, so that a shorter schedule needs a higher one."""
    mixing_weight_decay: float = 3e-4
    bfloat16: bool = False
    """Convolutions of the training in bfloat16; what is trained is tested in float32."""


class Data(NamedTuple):
    """The two parts of the training images, and the test images."""

    filters: Pictures
    mixing: Pictures
    test: Pictures


def share_out(train: Pictures, test: Pictures) -> Data:
    """Return the first four fifths of the training images, the last fifth, and the test images."""
    first = len(train) * 4 // 5
    return Data(train.between(0, first), train.between(first, len(train)), test)


def build(job: Job, data: Data) -> LinearClassifier:
    """Return the untrained network; a pruned one as it is before pruning."""
    torch.manual_seed(job.seed)
    mean, std = data.filters.statistics()
    options: dict[str, Any] = {"base_resolution": SIDE, "norm": "batch", "mean": mean, "std": std}
    if job.multigrid:
        encoder = build_encoder("multigrid", network=job.arm, width=job.filters / 64, **options)
    else:
        options |= {"filters": job.filters, "blocks": job.layers - 2, "block": job.block, "stride": job.stride}
        structure = "learned" if job.arm == DEPTH else job.arm
        encoder = build_encoder("multires", structure=structure, learn_depth=job.arm == DEPTH, **options)
    return LinearClassifier(encoder, len(data.test.classes))


def pruned(network: LinearClassifier, how: str) -> LinearClassifier:
    """Prune a network's encoder, by a threshold or to one resolution, and return the network."""
    encoder = network.encoder
    assert isinstance(encoder, MultiresEncoder)
    network.encoder = prune_to_one(encoder) if how == ONE else prune(encoder, float(how))
    return network


class Remembered(nn.Module):
    """An optimizer's state as a module's, for a checkpoint that holds one optimizer and modules."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.optimizer = optimizer

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for index, state in self.optimizer.state_dict()["state"].items():
            destination |= {f"{prefix}{index}.{name}": torch.as_tensor(value) for name, value in state.items()}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in state_dict.items():
            index, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class Run:
    """Training one job in a folder, where the network that it is pruned from lies already."""

    def __init__(self, job: Job, schedule: Schedule, data: Data, folder: Path, device: str) -> None:
        self.job, self.schedule, self.data, self.folder = job, schedule, data, folder
        self.device = torch.device(device)
        self.network = build(job, data).to(self.device)
        parent = parent_of(job)
        self.epochs, self.lr = schedule.epochs, schedule.lr
        if parent is not None and job.pruned is not None:
            path = folder / f"{parent.name}.safetensors"
            if not path.is_file():
                raise ConfigError(
                    f"{path}: is not there, and {job.name} is pruned from it; train it anew in another --out"
                )
            self.network.load_state_dict(safetensors.torch.load_file(path), strict=True)
            self.network = pruned(self.network, job.pruned)
            self.epochs, self.lr = schedule.finetune_epochs, schedule.finetune_lr
        mixing = _mixing(self.network)
        chosen = {id(logits) for logits in mixing}
        self.mixing = mixing if _mixes(self.network) else []
        weights_alone = [weight for weight in self.network.parameters() if id(weight) not in chosen]
        self.optimizer = torch.optim.SGD(
            weights_alone, lr=self.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        self.mixer: torch.optim.Adam | None = None
        if self.mixing:
            self.mixer = torch.optim.Adam(
                self.mixing, schedule.mixing_lr, (0.5, 0.999), weight_decay=schedule.mixing_weight_decay
            )

    def train(self, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train what is left and test; None where it had to stop before the end."""
        path, identity = self.folder / f"{self.job.name}.checkpoint.safetensors", repr((self.job, self.schedule))
        remembered = [] if self.mixer is None else [Remembered(self.mixer)]
        checkpoint = Checkpoint(path, identity, self.network, self.optimizer, remembered)
        before = {} if self.job.pruned is None else {"before": self.test()}
        first, seconds, computed = 0, 0.0, 0.0
        if path.exists():
            progress = checkpoint.load()[0]
            first, seconds, computed = progress.epoch, progress.seconds, progress.totals["computed"]
        for epoch in range(first, self.epochs):
            if should_stop():
                return None
            begun, begun_computing = time.perf_counter(), time.process_time()
            loss = self.train_epoch(epoch)
            seconds += time.perf_counter() - begun
            computed += time.process_time() - begun_computing
            checkpoint.save(Progress(epoch=epoch + 1, seconds=seconds, totals={"computed": computed}))
            print(f"{self.job.name}  {epoch + 1}/{self.epochs}  loss {loss:.4f}  {seconds:.0f} s", flush=True)
        found = {**self.test(), **before, **self._what_it_is()}
        weights = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        with written_whole(self.folder / f"{self.job.name}.safetensors") as beside:
            safetensors.torch.save_file(weights, beside)
        path.unlink(missing_ok=True)
        each = {"epoch_seconds": seconds, "epoch_processor_seconds": computed}
        rounded = {name: round(value / max(self.epochs, 1), 1) for name, value in each.items()}
        return asdict(self.job) | {"name": self.job.name, **found, "epochs": self.epochs, **rounded}

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch, all that is random of which its number decides; returns the mean loss of the first part."""
        own = torch.Generator(self.device).manual_seed(self.job.seed * 1000 + epoch)
        self.network.encoder.running = Running(bfloat16=self.schedule.bfloat16)
        steps = max(len(self.data.filters) // self.schedule.batch, 1)
        batches = _batches(self.data.filters, self.schedule.batch, own)
        mixing_batches = _batches(self.data.mixing, self.schedule.mixing_batch, own)
        self.network.train()
        total = 0.0
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / self.epochs))
            if self.mixer is not None:
                self.mixing_step(*next(mixing_batches))
            total += self.filters_step(*next(batches))
        return total / steps

    def filters_step(self, images: Tensor, labels: Tensor) -> float:
        """Change everything but the mixing weights."""
        for logits in _mixing(self.network):
            logits.requires_grad_(False)
        loss = cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def mixing_step(self, images: Tensor, labels: Tensor) -> float:
        """Change the mixing weights alone; others' gradients are not computed."""
        assert self.mixer is not None
        for logits in self.mixing:
            logits.requires_grad_(True)
        loss = cross_entropy(self.network(images), labels)
        for logits, gradient in zip(self.mixing, torch.autograd.grad(loss, self.mixing), strict=True):
            logits.grad = gradient
        self.mixer.step()
        self.mixer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.inference_mode()
    def test(self, batch: int = 500) -> dict[str, Any]:
        """Accuracy on the test images, and which of them are right: bits, packed, in base 64."""
        self.network.eval()
        self.network.encoder.running = Running(bfloat16=False)
        test = self.data.test
        found = [
            (self.network(pixels).argmax(1) == labels).cpu()
            for pixels, labels in zip(torch.split(test.pixels, batch), torch.split(test.labels, batch), strict=True)
        ]
        right = torch.cat(found).numpy()
        return {
            "accuracy": float(right.mean()),
            "test_images": len(right),
            "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        }

    def _what_it_is(self) -> dict[str, Any]:
        encoder = self.network.encoder
        found: dict[str, Any] = {
            "parameters": sum(weight.numel() for weight in self.network.parameters()),
            "macs": count_macs(self.network, self.data.test.pixels[:1]),
        }
        if isinstance(encoder, MultiresEncoder):
            table, depth = encoder.mixing_table(), encoder.depth.table()
            rounded = [[round(weight, 4) for weight in row] for row in table.tolist()]
            found |= {"mixing": rounded, "outputs": list(encoder.outputs)}
            found |= {"depth": [round(weight, 4) for weight in depth.tolist()]} if self.job.arm == DEPTH else {}
        return found


def _mixing(network: LinearClassifier) -> list[nn.Parameter]:
    encoder = network.encoder
    return encoder.parts().mixing if isinstance(encoder, MultiresEncoder) else []


def _mixes(network: LinearClassifier) -> bool:
    """Whether there is a choice left: the one weight of a single resolution is a scale, and no more."""
    encoder = network.encoder
    if not isinstance(encoder, MultiresEncoder):
        return False
    return bool(_mixing(network)) and any(len(kept) > 1 for kept in (*encoder.kept, encoder.outputs))


def _batches(pictures: Pictures, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images and labels, in ever new orders; what is left at the end of an order is left out."""
    size = min(size, len(pictures))
    while True:
        order = torch.randperm(len(pictures), generator=generator, device=pictures.labels.device)
        for index in torch.split(order[: len(order) // size * size], size):
            yield pictures.augmented(index, generator), pictures.labels[index]
