"""Training: stages of epochs, checkpoints, and the model file at the end.

Whatever is random in a step comes from the seed and the step's place in the run, so that a run resumed after any crash
goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pyrtrav import ranks
from pyrtrav.allocator import keep_freed_memory
from pyrtrav.config import make_config
from pyrtrav.device import pick_device
from pyrtrav.encoders.running import Running
from pyrtrav.files import make_folder, remove_torn
from pyrtrav.methods import Stage, find_method
from pyrtrav.methods.criterion import Criterion
from pyrtrav.model_file import ModelCard, build_model
from pyrtrav.selection import Settings
from pyrtrav.training.balance import class_weights
from pyrtrav.training.checkpoint import Checkpoint, Weights
from pyrtrav.training.checks import (
    CHECKPOINT,
    WRITTEN,
    check_failed,
    check_folder,
    check_metrics,
    check_plan,
    check_weights,
    steps_of,
)
from pyrtrav.training.data import Dataset
from pyrtrav.training.early_exit import trained_exits
from pyrtrav.training.hints import Hints, check_method
from pyrtrav.training.images import OpenImages
from pyrtrav.training.log import EpochReport, RunLog
from pyrtrav.training.options import LOWER_IS_BETTER, NO_INFLUENCE, TrainingConfig
from pyrtrav.training.outcome import fit_selection, write_outcome
from pyrtrav.training.progress import Progress
from pyrtrav.training.step import Member, Stepper
from pyrtrav.training.tensorboard import TensorBoard
from pyrtrav.training.validate import validate
from pyrtrav.training.vector_cache import keep_vectors

Listener = Callable[[EpochReport], None]


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
        on_epoch: Listener | None = None,
        command: str | None = None,
        hints: Hints | None = None,
    ) -> None:
        self.dataset, self.card, self.config, self.seed = dataset, card, config, seed
        self.out, self.log = Path(out), RunLog(Path(out))
        self.device = pick_device(ranks.own_device(device))
        self.on_epoch = on_epoch
        self.command = command
        torch.manual_seed(seed)
        self.model = build_model(card).to(self.device)
        method = find_method(card.method)
        self.hints = hints or Hints()
        self.method_config = make_config(method.Config, card.config)
        lesson = getattr(self.method_config, "lesson", False)
        check_method(method, self.hints, max_depth=card.max_depth, lesson=lesson)
        self.stages: Sequence[Stage] = method.stages(self.method_config)
        bfloat16 = None if config.precision == "auto" else config.precision == "bfloat16"
        self.model.encoder.running = Running(bfloat16, config.recompute)
        if config.keep_vectors:
            keep_vectors(self.model, config.keep_vectors << 20)
        self.epochs, self.lr = config.epochs_of(len(self.stages)), config.lr_of(len(self.stages))
        check_plan(config, dataset, card.channels)
        labels = [example.label for example in dataset.split("train")]
        weights = class_weights(config.class_weights, labels, dataset.classes)
        for stage in self.stages:
            stage.objective.to(self.device)
            stage.objective.criterion = Criterion(config.label_smoothing, weights)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr[0], weight_decay=config.weight_decay)
        self.images = OpenImages(
            dataset.classes,
            self.model.encoder.base_resolution,
            channels=card.chosen or card.channels,
            window=card.window,
        )
        self.at = Progress()
        self.best: Weights | None = None
        self._listeners: list[Listener] = []
        self.checkpoint = Checkpoint(
            self.out / CHECKPOINT,
            self._identity(),
            self.model,
            self.optimizer,
            [stage.objective for stage in self.stages],
        )

    def run(self, *, resume: bool = False) -> Path:
        """Train all stages, calibrate, and write ``model.safetensors``; returns its path.

        Raises:
            ConfigError: the folder holds another run, or nothing to resume; or the loss runs away.
            DatasetError: more than 5 % of the images cannot be read (or any, with ``strict``).
        """
        keep_freed_memory()
        self._begin(resume)
        with contextlib.ExitStack() as stack:
            self._listeners = self._listen(stack)
            while self.at.stage < len(self.stages):
                self._epoch()
        if ranks.rank() == 0:
            self._finish()
        ranks.gather("finished")
        self.images.close()
        return self.out / "model.safetensors"

    def _begin(self, resume: bool) -> None:
        make_folder(self.out)
        if resume:
            self.at, self.best = self.checkpoint.load()
        else:
            check_folder(self.out)
        ranks.gather("loaded")
        if ranks.rank() > 0:
            return
        for name in WRITTEN:
            remove_torn(self.out / name)
        self.log.trim(self.at.done)
        # From here on there is always something to resume.
        self._save()

    def _listen(self, stack: contextlib.ExitStack) -> list[Listener]:
        """Who is told of every epoch."""
        listeners = [] if self.on_epoch is None else [self.on_epoch]
        if self.config.tensorboard and ranks.rank() == 0:
            board = TensorBoard(self.out / "tensorboard", self.at.done)
            listeners.append(stack.enter_context(contextlib.closing(board)).add)
        return listeners

    def _save(self) -> None:
        if ranks.rank() == 0:
            self.checkpoint.save(self.at, self.best)

    def _identity(self) -> str:
        """What a checkpoint must agree with to be resumed."""
        training = dataclasses.asdict(self.config)
        return json.dumps(
            {
                "card": dataclasses.asdict(self.card),
                "training": {name: value for name, value in training.items() if name not in NO_INFLUENCE},
                "seed": self.seed,
                "examples": [(e.path, e.label, e.split) for e in self.dataset.examples],
                "hints": self.hints.identity,
            },
            sort_keys=True,
        )

    # An epoch.

    def _epoch(self) -> None:
        """Take the steps of an epoch that are left, validate, report, save."""
        at, config = self.at, self.config
        stage, epochs = self.stages[at.stage], self.epochs[at.stage]
        begun = time.perf_counter() - at.seconds
        self._set_lr()
        self.model.train()
        stepper = Stepper(self.model, stage, self.optimizer, self.images, config, self.hints)
        for batch, progress in self._batches():
            # What an encoder may draw besides, such as dropout, follows from the step alone too.
            torch.manual_seed(int(np.random.SeedSequence([*self._place, at.step, ranks.rank()]).generate_state(1)[0]))
            report = stepper.step(batch, (at.epoch + progress) / epochs)
            at.count(report.totals, report.counts, report.failed)
            at.seconds = time.perf_counter() - begun
            check_metrics(report.totals, self._spoken, config)
            self._check_failed()
            if config.checkpoint_steps and at.step % config.checkpoint_steps == 0:
                check_weights(self.model, self._spoken, config)
                self._save()
        check_weights(self.model, self._spoken, config)
        warnings = [self._check_failed(), *self.hints.new_warnings()]
        warning = "\n".join(text for text in warnings if text) or None
        metrics = at.means()
        last = at.epoch + 1 == epochs
        if self.dataset.split("val") and (last or (at.epoch + 1) % config.validate_every == 0):
            metrics |= self._validate(stage)
        done = EpochReport(stage.name, at.epoch + 1, epochs, metrics, time.perf_counter() - begun, warning)
        if ranks.rank() == 0:
            self.log.append(done)
            for listener in self._listeners:
                listener(done)
        at.end_epoch()
        if last or 0 < config.patience <= at.waited:
            self._end_stage(stage)
        self._save()

    def _end_stage(self, stage: Stage) -> None:
        """Put the weights to keep in place; the next stage, or the end, goes on with them."""
        kept = self.at.epoch
        if self.best is not None:
            self.model.load_state_dict(self.best)
            kept, self.best = self.at.best_epoch, None
        self.at.end_stage(stage.name, kept)

    @property
    def _place(self) -> tuple[int, int, int]:
        return self.seed, self.at.stage, self.at.epoch

    @property
    def _spoken(self) -> str:
        return f"epoch {self.at.epoch + 1} of stage {self.stages[self.at.stage].name!r}"

    def _batches(self) -> Iterator[tuple[list[Member], float]]:
        """The batches of an epoch that are not done, and how much of the epoch lies before each (0 to 1)."""
        examples, place = self.dataset.split("train"), self._place
        order = np.random.default_rng(place).permutation(len(examples)).tolist()
        steps = steps_of(len(order), self.config.batch_size)
        for step, batch in enumerate(np.array_split(order, steps)):
            if step >= self.at.step:
                yield [Member(examples[i], (*place, i)) for i in batch.tolist()], step / steps

    def _set_lr(self) -> None:
        done = self.at.epoch / self.epochs[self.at.stage]
        factor = 0.04 if done >= 0.9 else 0.2 if done >= 0.8 else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr[self.at.stage] * factor

    def _check_failed(self) -> str | None:
        return check_failed(self.at.failed, len(self.dataset.split("train")), strict=self.config.strict)

    def _sampling(self, depth: int) -> Settings:
        share = getattr(self.method_config, "share_cells", True)
        return Settings(select="sample", depth=depth, share_cells=share, seed=self.seed)

    def _validate(self, stage: Stage) -> dict[str, float]:
        """Judge the weights on the validation images, and set them aside where they are the best so far."""
        settings = dataclasses.replace(self._sampling(stage.depth), select=stage.select)
        first = ranks.rank() == 0
        own = validate(self.model, self.dataset.split("val"), self.images, settings) if first else {}
        found: dict[str, float] = ranks.gather(own)[0]
        name = "loss" if self.config.keep == "last" else self.config.keep
        better = self.at.judge(found[f"val_{name}"], lower_is_better=name in LOWER_IS_BETTER)
        if better and self.config.keep != "last":
            self.best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    # The end.

    def _finish(self) -> None:
        """Fit the default selection, and write the model with what it reached."""
        settings = self._sampling(self.model.max_depth)
        selection, reached = fit_selection(self.model, self.dataset, self.images, settings)
        training = {
            "command": self.command,
            "seed": self.seed,
            "training": dataclasses.asdict(self.config),
            "images": {name: len(self.dataset.split(name)) for name in ("train", "val", "test")},
            "split": self.dataset.rule,
            "fold": self.dataset.fold,
            "data_digest": self.dataset.digest,
        }
        card = dataclasses.replace(self.card, selection=selection)
        exits = trained_exits(self.model, card, self.dataset.split("val"), self.device)
        card = dataclasses.replace(card, exits=exits)
        write_outcome(self.out, self.model, card, self.log, self.at, training, reached)
