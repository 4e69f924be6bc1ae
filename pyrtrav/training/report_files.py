"""An evaluation on the disk: the report, its pictures, and a row for every image."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyrtrav.files import make_folder, written_whole
from pyrtrav.training.charts import save_confusion, save_cost
from pyrtrav.training.metrics import predicted_classes
from pyrtrav.training.report import Evaluated
from pyrtrav.training.runs import COSTS


def write_report(evaluated: Evaluated, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write everything into a folder, each file whole or not at all; returns the files by what they are.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    out = make_folder(folder)
    files = {
        "report": out / "report.json",
        "predictions": out / "predictions.csv",
        "confusion": out / "confusion.png",
        "cost": out / "cost.png",
    }
    with written_whole(files["report"]) as beside:
        beside.write_text(json.dumps(evaluated.report, indent=1) + "\n", encoding="ascii")
    with (
        written_whole(files["predictions"]) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(prediction_rows(evaluated))
    save_confusion(evaluated.report, files["confusion"])
    save_cost(evaluated.report, files["cost"])
    return files


def prediction_rows(evaluated: Evaluated) -> Iterator[list[Any]]:
    """Yield the names of the columns, then a row for every image in the data's order; what it lacks is empty."""
    classes, run = evaluated.report["confusion"]["classes"], evaluated.run
    depths = range(len(run.probabilities))
    yield [
        *("path", "group", "label", "predicted", "correct"),
        *(f"predicted.depth_{depth}" for depth in depths),
        *(f"probability.{name}" for name in classes),
        *COSTS,
        "error",
    ]
    said = [[*classes, ""][predicted] for predicted in predicted_classes(run.final)]
    by_depth = [[[*classes, ""][predicted] for predicted in predicted_classes(level)] for level in run.probabilities]
    for number, example in enumerate(evaluated.held_out.examples):
        failed = run.errors.get(number)
        truth = classes[example.label]
        yield [
            *(example.path, example.group or "", truth, said[number], int(said[number] == truth)),
            *(names[number] if run.depths[number] >= depth else "" for depth, names in enumerate(by_depth)),
            *("" if failed else value for value in run.final[number].tolist()),
            *("" if failed else f"{run.costs[name][-1, number]:.15g}" for name in COSTS),
            failed or "",
        ]
