"""What a run leaves behind: ``model.safetensors``, ``summary.json`` and ``learning_curve.png``."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrtrav import __version__
from pyrtrav.files import written_whole
from pyrtrav.methods import Model
from pyrtrav.model_file import ModelCard, save_model
from pyrtrav.selection import Settings
from pyrtrav.training.calibrate import budget_for, calibrate
from pyrtrav.training.data import Dataset
from pyrtrav.training.evaluate import evaluate
from pyrtrav.training.images import OpenImages
from pyrtrav.training.learning_curve import save_learning_curve
from pyrtrav.training.log import RunLog
from pyrtrav.training.progress import Progress

SUMMARY_SCHEMA = "pyrtrav.training/1"


def fit_selection(
    model: Model, dataset: Dataset, images: OpenImages, settings: Settings
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the selection that a model uses by default, and what it and sampling reach on the validation images."""
    examples = dataset.split("val")
    if examples:
        found = calibrate(model, examples, images, settings)
        reached = {
            "accuracy": round(found.stored.accuracy, 4),
            "mean_cells": round(found.stored.mean_cells, 3),
            "accuracy_sampled": round(found.sampled_accuracy, 4),
            "mean_cells_sampled": round(found.sampled_cells, 3),
        }
        return found.selection, reached
    if settings.depth == 0:
        return {"select": "all"}, {}
    # Nothing to fit thresholds on: the mean of what training attends, and the glance.
    cells = evaluate(model, dataset.split("train")[:64], images, settings).mean_cells
    return {"select": "budget", "budget": budget_for(cells)}, {}


def stage_ends(progress: Progress, reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each stage how long it was, and the epoch that it kept with its place in the log and its metrics."""
    ends, start = [], 0
    for end in progress.ended:
        place = start + end.kept - 1
        metrics = reports[place]["metrics"]
        ends.append({"stage": end.name, "epochs": end.epochs, "kept": end.kept, "place": place, "metrics": metrics})
        start += end.epochs
    return ends


def write_outcome(
    folder: Path,
    model: Model,
    card: ModelCard,
    log: RunLog,
    progress: Progress,
    training: Mapping[str, Any],
    reached: Mapping[str, float],
) -> None:
    """Write the three files; the model comes last, so that where it is everything is.

    Args:
        folder: of the run.
        model: as trained.
        card: with the fitted selection.
        log: of all epochs.
        progress: of the run, ended.
        training: command, seed, options, images: what a reader needs to do it again.
        reached: what the fitted selection reaches.
    """
    reports = log.read()
    ends = stage_ends(progress, reports)
    seconds = round(sum(report["seconds"] for report in reports), 1)
    short = {**training, "seconds": seconds, **({"validation": dict(reached)} if reached else {})}
    summary = {
        "schema": SUMMARY_SCHEMA,
        **short,
        "classes": list(card.classes),
        "method": {"name": card.method, "options": card.config},
        "encoder": dataclasses.asdict(card.encoder),
        "stages": [{name: value for name, value in end.items() if name != "place"} for end in ends],
        "best_epoch": ends[-1]["kept"],
        "metrics": ends[-1]["metrics"],
        "selection": card.selection,
        "versions": versions(),
    }
    with written_whole(folder / "summary.json") as beside:
        beside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    save_learning_curve(folder / "learning_curve.png", reports, [end["place"] for end in ends])
    card = dataclasses.replace(card, training={**card.training, **short})
    save_model(folder / "model.safetensors", model, card)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    return {
        "pyrtrav": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
