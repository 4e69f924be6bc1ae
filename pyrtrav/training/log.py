"""The log of a run: one line of JSON an epoch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrtrav.files import append_line, written_whole


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did; a line of ``log.jsonl``."""

    stage: str
    epoch: int
    epochs: int
    metrics: dict[str, float]
    seconds: float
    warning: str | None = None


class RunLog:
    """``log.jsonl`` of a run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"

    def append(self, report: EpochReport) -> None:
        append_line(self.path, json.dumps(dataclasses.asdict(report)))

    def read(self) -> list[dict[str, Any]]:
        """Return the reports of the epochs that are done."""
        if not self.path.exists():
            return []
        reports = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                reports.append(json.loads(line))
            except ValueError:
                break  # torn by a crash
        return reports

    def trim(self, epochs: int) -> None:
        """Drop the line of an epoch that was done but not saved: it is done again."""
        kept = self.read()[:epochs]
        with written_whole(self.path) as beside:
            beside.write_text("".join(json.dumps(report) + "\n" for report in kept), encoding="utf-8")
