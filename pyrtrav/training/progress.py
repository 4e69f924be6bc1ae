"""Where a run stands: what a checkpoint holds beside tensors, as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyrtrav.config import make_config


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
    seen: int = 0
    """Images that those sums count."""
    failed: dict[str, str] = field(default_factory=dict)
    """Of the epoch so far: images that could not be read, and why."""
    seconds: float = 0.0
    """Of the epoch so far."""

    def count(self, totals: Mapping[str, float], seen: int, failed: Mapping[str, str]) -> None:
        """Add what one step did."""
        for name, value in totals.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.seen += seen
        self.failed.update(failed)
        self.step += 1

    def means(self) -> dict[str, float]:
        """Return the epoch's metrics a image."""
        return {name: value / max(self.seen, 1) for name, value in self.totals.items()}

    def end_epoch(self) -> None:
        self.epoch, self.done = self.epoch + 1, self.done + 1
        self.step, self.totals, self.seen, self.failed, self.seconds = 0, {}, 0, {}, 0.0

    def end_stage(self) -> None:
        self.stage, self.epoch = self.stage + 1, 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Progress:
        values: dict[str, Any] = json.loads(text)
        return make_config(cls, values)
