"""One job of the comparison of encoders: trained on a data set, then evaluated."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.encoders_arms import ARMS
from benchmarks.encoders_mnist import DRAWS, train_on_digits
from benchmarks.scenes_arms import COMMON, TOPDOWN, WITH_HINTS
from benchmarks.scenes_data import load_scenes, pyramid_of, write_hints, write_manifest
from pyrtrav.encoders.normalisation import BatchNorm
from pyrtrav.methods.topdown import TopDown
from pyrtrav.model_file import load_model
from pyrtrav.predict import Predictor
from pyrtrav.sampling import Images
from pyrtrav.selection import Settings
from pyrtrav.training.data import Dataset, load_dataset
from pyrtrav.training.hints import Hints, load_hints
from pyrtrav.training.images import OpenImages
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer

Record = dict[str, Any]

SAMPLES = Path("sample_data/tissue")
SAMPLES_OPTIONS = ("max_depth=3", "c_t=20.0")
"""In patches of 32 px the evidence shows at depth 3."""

RATES = {"samples": 5e-4, "mnist": 2e-3, "scenes": 1e-3}
"""Learning rates by data: those at which the default encoder learns."""


@dataclass(frozen=True)
class Job:
    """What a line of the results is about."""

    data: str
    arm: str
    seed: int
    epochs: int
    lr: float
    images: int = 0
    """Of an epoch, where there are more."""
    fold: int = 0
    lesson: int = 0
    """Epochs of the lesson, on scenes."""
    bfloat16: bool = False
    """Of the encoder in training; what is trained is judged in float32."""

    @property
    def precision(self) -> str:
        """The option of training."""
        return f"precision={'bfloat16' if self.bfloat16 else 'float32'}"

    @property
    def name(self) -> str:
        images = f"-images{self.images}" if self.images else ""
        fold = f"-fold{self.fold}" if self.data == "scenes" else ""
        rate = "" if self.lr == RATES[self.data] else f"-lr{self.lr:g}"
        how = (f"-lesson{self.lesson}" if self.lesson else "") + ("-bfloat16" if self.bfloat16 else "")
        return f"{self.data}-{self.arm}{fold}-seed{self.seed}-epochs{self.epochs}{images}{rate}{how}"


def size_of(model: TopDown) -> Record:
    """Return parameters, and multiply-accumulates of one patch."""
    return {
        "encoder_parameters": sum(weight.numel() for weight in model.encoder.parameters()),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "patch_macs": model.module_macs()["encoder"],
    }


@torch.inference_mode()
def look(
    model: TopDown, batches: Iterable[tuple[Images, Tensor]], seed: int, draws: int = DRAWS, by_batches: bool = False
) -> Record:
    """Return accuracy, and attended cells and multiply-accumulates an image, with draws as in training.

    Args:
        model: is left as it is.
        batches: of all images, ``draws`` times over in one order.
        seed: of the draws.
        draws: how often each image is looked at; how often it was right is returned for each.
        by_batches: normalise by the statistics of each batch, as in training, where running ones are used else.
    """
    model.eval()
    for norm in _batch_norms(model) if by_batches else []:
        norm.train()
    generator = torch.Generator().manual_seed(seed)
    settings = Settings("sample", depth=model.max_depth, share_cells=model.config.share_cells)
    right: list[int] = []
    cells, macs = 0.0, 0
    for images, labels in batches:
        trace = model.look(images, settings, generator)
        believed = model.believe(trace, model.max_depth).argmax(1).cpu()
        right += (believed == labels.cpu()).long().tolist()
        cells += float(trace.cells_attended(model.max_depth).sum())
        macs += sum(model.macs(trace))
    model.eval()
    count = len(right)
    means = {"accuracy": sum(right) / count, "cells": cells / count, "macs": macs / count}
    return {**means, "right": np.array(right).reshape(draws, -1).sum(0).tolist(), "draws": draws}


def _batch_norms(model: TopDown) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def train(job: Job, dataset: Dataset, settings: Sequence[str], folder: Path, device: str, hints: Hints) -> Path:
    """Train as `pyrtrav train` does, from the last checkpoint if there is one; returns the model file."""
    path = folder / "model.safetensors"
    if path.exists():
        return path
    card, config = plan_training(dataset, method="topdown", encoder=ARMS[job.arm].encoder, assignments=settings)

    def show(report: EpochReport) -> None:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in report.metrics.items())
        print(f"  {report.stage}  {report.epoch}/{report.epochs}  {figures}  {report.seconds:.1f} s", flush=True)

    trainer = Trainer(dataset, card, config, folder, seed=job.seed, device=device, on_epoch=show, hints=hints)
    return trainer.run(resume=(folder / "checkpoint.safetensors").exists())


def on_samples(job: Job, folder: Path, asked: argparse.Namespace) -> Record:
    """The repository's training samples, as `pyrtrav train` trains on them."""
    arm, dataset = ARMS[job.arm], load_dataset(SAMPLES, seed=job.seed)
    own = () if arm.encoder.startswith("imagenet") else ("base_resolution=32", *arm.small)
    settings = (*own, *SAMPLES_OPTIONS, *arm.method, f"epochs={job.epochs}", f"lr={job.lr}", job.precision)
    path = train(job, dataset, settings, folder, asked.device, Hints())
    loaded = load_model(path)
    model, examples = loaded.model, dataset.split("val")
    assert isinstance(model, TopDown)
    images = OpenImages(dataset.classes, model.encoder.base_resolution)
    labels = torch.tensor([example.label for example in examples])

    def batches() -> Iterable[tuple[Images, Tensor]]:
        for _ in range(DRAWS):
            for start in range(0, len(examples), 16):
                opened, errors = images.open_all([example.path for example in examples[start : start + 16]])
                assert not errors
                yield [one for one in opened if one is not None], labels[start : start + 16]

    found = look(model, batches(), job.seed)
    images.close()
    return {**found, **size_of(model), "seconds": loaded.card.training["seconds"]}


def on_digits(job: Job, folder: Path, asked: argparse.Namespace) -> Record:
    """Digits in memory."""
    run = train_on_digits(job, folder, asked.source, asked.device)
    found = look(run.model, run.validation(), job.seed)
    if _batch_norms(run.model):
        found["by_batches"] = look(run.model, run.validation(), job.seed, by_batches=True)["accuracy"]
    return {**found, **size_of(run.model), "seconds": run.seconds}


def on_scenes(job: Job, folder: Path, asked: argparse.Namespace) -> Record:
    """Street scenes with hints: one fold is looked at as a classified image is, the others train."""
    arm, scenes, work = ARMS[job.arm], load_scenes(asked.source / "scenes"), asked.scenes
    assert arm.large is not None
    dataset = load_dataset(write_manifest(work, scenes, job.fold))
    hints = load_hints(write_hints(work, scenes, job.fold, 1.0), dataset)
    common = [option for option in COMMON if not option.startswith("widths")]
    lengths = f"epochs=[{job.lesson},1,1,1,{job.epochs}]"
    settings = (*common, *arm.large, *TOPDOWN, *WITH_HINTS, *arm.method, lengths, f"lr={job.lr}", job.precision)
    path = train(job, dataset, settings, folder, "cpu", hints)
    predictor, rows = Predictor(path, device="cpu"), [scene for scene in scenes if scene.fold == job.fold]
    begun, right, costs = time.perf_counter(), list[int](), []
    for scene in rows:
        (outcome,) = predictor.predict([pyramid_of(work, scene.name)])
        if outcome.error is not None:
            raise outcome.error
        right.append(int(outcome.record["prediction"]["label"] == scene.label))
        costs.append(outcome.record["cost"])
    model = load_model(path).model
    assert isinstance(model, TopDown)
    return {
        "accuracy": sum(right) / len(rows),
        "right": right,
        "draws": 1,
        "cells": sum(cost["fixations"] - 1 for cost in costs) / len(rows),
        "macs": sum(cost["macs"] for cost in costs) / len(rows),
        "look_seconds": time.perf_counter() - begun,
        **size_of(model),
        "seconds": predictor.card.training["seconds"],
    }


TASKS: dict[str, Callable[[Job, Path, argparse.Namespace], Record]] = {
    "samples": on_samples,
    "mnist": on_digits,
    "scenes": on_scenes,
}
