"""Where a run stands: what a checkpoint holds beside tensors, as plain data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyrtrav.config import make_config


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended."""

    name: str
    epochs: int
    """As many as were trained."""
    kept: int
    """The epoch, from 1, whose weights it ended with."""


@dataclass
class Progress:
    """Counts what is done; between two steps it says exactly what comes next."""

    stage: int = 0
    epoch: int = 0
    """Epochs of the stage that are done."""
    step: int = 0
    """Steps of the epoch that are done."""
    done: int = 0
    """Epochs of all stages that are done: lines of the log."""
    totals: dict[str, float] = field(default_factory=dict)
    """Of the epoch so far: each metric's sum over images."""
    counts: dict[str, int] = field(default_factory=dict)
    """Images that each of those sums counts: those of the steps that had the metric."""
    failed: dict[str, str] = field(default_factory=dict)
    """Of the epoch so far: images that could not be read, and why."""
    seconds: float = 0.0
    """Of the epoch so far."""

    best: float | None = None
    """Of the stage so far: the best validation's value."""
    best_epoch: int = 0
    """Its epoch in the stage, from 1."""
    waited: int = 0
    """Validations since then that could be judged."""
    ended: list[StageEnd] = field(default_factory=list)
    """One for each stage that is done."""

    def count(self, totals: Mapping[str, float], counts: Mapping[str, int], failed: Mapping[str, str]) -> None:
        """Add what one step did."""
        for name, value in totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + counts[name]
        self.failed.update(failed)
        self.step += 1

    def means(self) -> dict[str, float]:
        """Return the epoch's metrics, each a mean over the images that had it."""
        return {name: value / self.counts[name] for name, value in self.totals.items()}

    def end_epoch(self) -> None:
        self.epoch, self.done = self.epoch + 1, self.done + 1
        self.step, self.totals, self.counts, self.failed, self.seconds = 0, {}, {}, {}, 0.0

    def judge(self, value: float, *, lower_is_better: bool) -> bool:
        """Take note of a validation after the epoch in hand; returns whether it is the best of the stage.

        One without a value, nan, says nothing: it is neither better nor waited for.
        """
        if math.isnan(value):
            return False
        better = self.best is None or (value < self.best if lower_is_better else value > self.best)
        self.waited = 0 if better else self.waited + 1
        if better:
            self.best, self.best_epoch = value, self.epoch + 1
        return better

    def end_stage(self, name: str, kept_epoch: int) -> None:
        self.ended.append(StageEnd(name, self.epoch, kept_epoch))
        self.stage, self.epoch = self.stage + 1, 0
        self.best, self.best_epoch, self.waited = None, 0, 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        values: dict[str, Any] = json.loads(text)
        return make_config(cls, values)
