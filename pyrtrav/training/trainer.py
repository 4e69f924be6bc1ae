"""Training: stages of epochs, a checkpoint after each, and the model file at the end.

Every epoch's randomness comes from (seed, stage, epoch), so that a run resumed after any crash goes on as if nothing
had happened.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrtrav.config import make_config
from pyrtrav.errors import ConfigError, DatasetError, PyramidError
from pyrtrav.files import append_line, make_folder, written_whole
from pyrtrav.methods import Stage, find_method
from pyrtrav.model_file import ModelCard, build_model, save_model
from pyrtrav.predict import pick_device
from pyrtrav.selection import Settings
from pyrtrav.training.augment import random_view
from pyrtrav.training.calibrate import budget_for, calibrate
from pyrtrav.training.checkpoint import Position, load_checkpoint, save_checkpoint
from pyrtrav.training.data import Dataset, Example
from pyrtrav.training.evaluate import evaluate
from pyrtrav.training.hints import Hints, check_method
from pyrtrav.training.images import OpenImages

MAX_FAILED = 0.05
"""Share of training images that may be unreadable in an epoch."""


@dataclass(frozen=True)
class TrainingConfig:
    """How any method is trained."""

    epochs: int | tuple[int, ...] = 100
    """Epochs a stage; one value for all stages, or one each."""
    batch_size: int = 16
    """Images a step."""
    lr: float = 2e-3
    """Adam's step; drops to a fifth at 80 % and again at 90 % of all steps (the paper's schedule)."""
    weight_decay: float = 0.0
    """Decoupled (AdamW)."""
    clip: float = 5.0
    """Largest norm of the gradient."""
    turn: bool = True
    """Show images in any of their eight turns and mirrorings."""
    jitter: float = 0.05
    """Colour: brightness, contrast, saturation and hue of each image vary by up to this; 0 to below 1."""
    validate_every: int = 5
    """Epochs between validations; the last epoch of a stage is always validated."""
    strict: bool = False
    """Stop at the first unreadable image."""
    hed: float = 0.0
    """Stains: amounts of haematoxylin, eosin and DAB in each image vary by up to this; 0 to below 1."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("jitter", "hed"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ConfigError(f"lr must be above 0, got {self.lr}")
        if min(self.epochs if isinstance(self.epochs, tuple) else (self.epochs,), default=0) < 1:
            raise ConfigError(f"epochs must be 1 or more, got {self.epochs}")

    def epochs_of(self, stages: int) -> tuple[int, ...]:
        epochs = self.epochs if isinstance(self.epochs, tuple) else (self.epochs,) * stages
        if len(epochs) != stages:
            raise ConfigError(f"epochs has {len(epochs)} values for {stages} stages")
        return epochs


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did; a line of ``log.jsonl``."""

    stage: str
    epoch: int
    epochs: int
    metrics: dict[str, float]
    seconds: float
    warning: str | None = None


class Trainer:
    """Trains one model on one dataset into one folder."""

    def __init__(
        self,
        dataset: Dataset,
        card: ModelCard,
        config: TrainingConfig,
        out: str | Path,
        *,
        seed: int = 0,
        device: str = "auto",
        on_epoch: Callable[[EpochReport], None] | None = None,
        command: str | None = None,
        hints: Hints | None = None,
    ) -> None:
        self.dataset, self.card, self.config, self.seed = dataset, card, config, seed
        self.out = Path(out)
        self.device = pick_device(device)
        self.on_epoch = on_epoch
        self.command = command
        torch.manual_seed(seed)
        self.model = build_model(card).to(self.device)
        method = find_method(card.method)
        self.hints = hints or Hints()
        check_method(method, self.hints)
        self.method_config = make_config(method.Config, card.config)
        self.stages: Sequence[Stage] = method.stages(self.method_config)
        self.epochs = config.epochs_of(len(self.stages))
        for stage in self.stages:
            stage.objective.to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.images = OpenImages(
            dataset.classes,
            self.model.encoder.base_resolution,
            channels=card.chosen or card.channels,
            window=card.window,
        )
        # What a checkpoint must agree with to be resumed.
        self.identity = json.dumps(
            {
                "card": dataclasses.asdict(card),
                "training": dataclasses.asdict(config),
                "seed": seed,
                "examples": [(e.path, e.label, e.split) for e in dataset.examples],
                "hints": self.hints.identity,
            },
            sort_keys=True,
        )

    def run(self, *, resume: bool = False) -> Path:
        """Train all stages, calibrate, and write ``model.safetensors``; returns its path.

        Raises:
            ConfigError: the folder holds another run, or nothing to resume.
            DatasetError: more than 5 % of the images cannot be read (or any, with ``strict``).
        """
        make_folder(self.out)
        checkpoint = self.out / "checkpoint.safetensors"
        start = Position(0, 0)
        if resume:
            start = load_checkpoint(checkpoint, self.identity, self.model, self.optimizer, self._objectives)
            self._trim_log(sum(self.epochs[: start.stage]) + start.epoch)
        elif checkpoint.exists():
            raise ConfigError(f"{self.out}: holds another run; go on with --resume, or choose another --out")
        for number, stage in enumerate(self.stages):
            for epoch in range(self.epochs[number]):
                if (number, epoch) < (start.stage, start.epoch):
                    continue
                self._epoch(number, stage, epoch)
                save_checkpoint(
                    checkpoint,
                    Position(number, epoch + 1),
                    self.identity,
                    self.model,
                    self.optimizer,
                    self._objectives,
                )
        path = self._finish()
        self.images.close()
        return path

    @property
    def _objectives(self) -> list[torch.nn.Module]:
        return [stage.objective for stage in self.stages]

    def _epoch(self, number: int, stage: Stage, epoch: int) -> None:
        begun = time.perf_counter()
        random = np.random.default_rng([self.seed, number, epoch])
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        self._set_lr(number, epoch)
        self.model.train()
        examples = self.dataset.split("train")
        order = random.permutation(len(examples))
        totals: dict[str, float] = {}
        seen, errors = 0, {}
        batches = np.array_split(order, -(-len(order) // self.config.batch_size))
        for step, batch in enumerate(batches):
            progress = (epoch + step / len(batches)) / self.epochs[number]
            metrics, failed, count = self._step(stage, [examples[i] for i in batch], random, generator, progress)
            errors.update(failed)
            if failed and self.config.strict:
                break
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value * count
            seen += count
        warnings = [self._check_failed(errors, len(examples)), *self.hints.new_warnings()]
        warning = "\n".join(text for text in warnings if text) or None
        means = {name: value / max(seen, 1) for name, value in totals.items()}
        last = epoch + 1 == self.epochs[number]
        if (epoch + 1) % self.config.validate_every == 0 or last:
            means |= self._validate(stage)
        report = EpochReport(stage.name, epoch + 1, self.epochs[number], means, time.perf_counter() - begun, warning)
        append_line(self.out / "log.jsonl", json.dumps(dataclasses.asdict(report)))
        if self.on_epoch is not None:
            self.on_epoch(report)

    def _step(
        self,
        stage: Stage,
        batch: Sequence[Example],
        random: np.random.Generator,
        generator: torch.Generator,
        progress: float,
    ) -> tuple[dict[str, float], dict[str, PyramidError], int]:
        """One optimiser step; returns metrics, what could not be read, and how many images could."""
        config = self.config
        pyramids, errors = self.images.open_all([example.path for example in batch])
        base = self.model.encoder.base_resolution
        views: list[Any] = []
        labels = []
        for example, pyramid in zip(batch, pyramids, strict=True):
            if pyramid is not None:
                hints = self.hints.of(example.path, pyramid)
                views.append(
                    random_view(
                        pyramid, base, random, turn=config.turn, jitter=config.jitter, hed=config.hed, hints=hints
                    )
                )
                labels.append(example.label)
        if not views:
            return {}, errors, 0
        loss, metrics, trace = stage.objective(self.model, views, torch.tensor(labels), generator, progress)
        errors |= {
            trace_image.path: error
            for trace_image, error in zip(_repeat(views, trace.images), trace.errors, strict=True)
            if error is not None
        }
        alive = int(trace.alive.sum()) * len(views) // max(trace.images, 1)
        if alive == 0:
            return {}, errors, 0
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        return metrics, errors, alive

    def _set_lr(self, number: int, epoch: int) -> None:
        done = (sum(self.epochs[:number]) + epoch) / sum(self.epochs)
        factor = 0.04 if done >= 0.9 else 0.2 if done >= 0.8 else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    def _check_failed(self, errors: dict[str, PyramidError], count: int) -> str | None:
        if not errors:
            return None
        first = next(iter(errors.values()))
        named = f"{len(errors)} of {count} training images cannot be read, first: {first}"
        if self.config.strict or len(errors) > MAX_FAILED * count:
            raise DatasetError(f"{named}; mend or remove them (at most {MAX_FAILED:.0%} may fail, none with strict)")
        return named

    def _log(self) -> list[dict[str, Any]]:
        lines = (self.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
        reports = []
        for line in lines:
            try:
                reports.append(json.loads(line))
            except ValueError:
                break  # torn by a crash
        return reports

    def _trim_log(self, epochs: int) -> None:
        """Drop the line of an epoch that was done but not saved: it is done again."""
        kept = self._log()[:epochs]
        with written_whole(self.out / "log.jsonl") as beside:
            beside.write_text("".join(json.dumps(report) + "\n" for report in kept), encoding="utf-8")

    def _sampling(self, depth: int) -> Settings:
        share = getattr(self.method_config, "share_cells", True)
        return Settings(select="sample", depth=depth, share_cells=share, seed=self.seed)

    def _validate(self, stage: Stage) -> dict[str, float]:
        examples = self.dataset.split("val")
        if not examples:
            return {}
        found = evaluate(self.model, examples, self.images, self._sampling(stage.depth))
        return {
            "val_accuracy": found.accuracy,
            "val_cells": found.mean_cells,
            **({"val_failed": float(len(found.errors))} if found.errors else {}),
        }

    def _finish(self) -> Path:
        """Fit the default selection, and write the model with what it reached."""
        examples = self.dataset.split("val")
        summary: dict[str, Any] = {
            "command": self.command,
            "seed": self.seed,
            "training": dataclasses.asdict(self.config),
            "images": {name: len(self.dataset.split(name)) for name in ("train", "val", "test")},
            "split": self.dataset.rule,
            "seconds": round(sum(report["seconds"] for report in self._log()), 1),
        }
        settings = self._sampling(self.model.max_depth)
        if examples:
            found = calibrate(self.model, examples, self.images, settings)
            selection = found.selection
            summary["validation"] = {
                "accuracy": round(found.stored.accuracy, 4),
                "mean_cells": round(found.stored.mean_cells, 3),
                "accuracy_sampled": round(found.sampled_accuracy, 4),
                "mean_cells_sampled": round(found.sampled_cells, 3),
            }
        elif settings.depth == 0:
            selection = {"select": "all"}
        else:
            # Nothing to fit thresholds on: the mean of what training attends, and the glance.
            found_cells = evaluate(self.model, self.dataset.split("train")[:64], self.images, settings).mean_cells
            selection = {"select": "budget", "budget": budget_for(found_cells)}
        card = dataclasses.replace(self.card, selection=selection, training={**self.card.training, **summary})
        path = self.out / "model.safetensors"
        save_model(path, self.model, card)
        return path


def _repeat(views: Sequence[Any], images: int) -> list[Any]:
    """The view of every image of a trace, which holds each in a run of samples."""
    return [view for view in views for _ in range(images // len(views))]
