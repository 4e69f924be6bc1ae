"""Early exit on held-out images, from one full run: what it would reach, and the table that a model file keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrtrav.errors import ConfigError
from pyrtrav.exits import MOST_IMAGES, ExitTable, at_depths, exit_depths, look_of
from pyrtrav.how_to_look import goes_by_depth
from pyrtrav.methods import Model
from pyrtrav.model_file import LoadedModel, ModelCard, save_model
from pyrtrav.predict import Predictor
from pyrtrav.selection import Ints, Settings
from pyrtrav.training.data import Example
from pyrtrav.training.runs import COSTS, Run, run_over

CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""At which images are let go, for the curve."""


def sweep(run: Run) -> Iterator[tuple[float, Run]]:
    """Yield for each confidence what would have come of a run in which images leave at it.

    A confidence at which all leave where they do at the one before is left out. Each run has one depth, the image's
    own, and its multiply-accumulates are those with a belief after each depth.
    """
    before: Ints | None = None
    for confidence in CONFIDENCES:
        left = _depths(run, confidence)
        if before is None or (left != before).any():
            yield confidence, _cut(run, left)
        before = left


def _depths(run: Run, confidence: float) -> Ints:
    """After which depth each image leaves; -1 where it failed."""
    reached = exit_depths(run.probabilities.max(2), [confidence] * (len(run.probabilities) - 1))
    return np.minimum(reached, run.depths)


def _cut(run: Run, left: Ints) -> Run:
    read = np.maximum(left, 0)
    costs = {**run.costs, "macs": run.costs["judged_macs"]}
    return Run(
        run.settings,
        run.probabilities[read, np.arange(len(read))][None],
        {name: at_depths(costs[name], read)[None] for name in COSTS},
        left,
        run.errors,
    )


def share_left(run: Run, cut: Run) -> float:
    """Share of the images that did not fail that left before their last depth."""
    read = run.depths >= 0
    return float((cut.depths < run.depths)[read].mean()) if read.any() else 0.0


def exit_table(run: Run) -> ExitTable | None:
    """Return what images believed and cost after each depth; None of a run of one depth, or where all failed."""
    read = run.depths >= 0
    if len(run.probabilities) < 2 or not read.any():
        return None
    costs = {"fixations": run.costs["fixations"], "macs": run.costs["judged_macs"], "bytes": run.costs["bytes_read"]}
    known = {name: values[:, read] for name, values in costs.items() if not np.isnan(values[:, read]).any()}
    return ExitTable(look_of(run.settings), run.probabilities[:, read].max(2), known)


def trained_exits(model: Model, card: ModelCard, examples: Sequence[Example], device: torch.device) -> dict[str, Any]:
    """Return the table of a model that was just trained; empty where no image could leave by it, or should."""
    predictor = Predictor(LoadedModel(model, card, "", "model.safetensors"), device=str(device))
    settings = predictor.settings()
    possible = settings.depth > 0 and goes_by_depth(predictor.card, settings) and predictor.trained_at_all_depths
    if not possible or not examples:
        return {}
    kept = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), MOST_IMAGES)).round().astype(int))
    with _nothing_remembered(model):
        table = exit_table(run_over(predictor, [examples[i] for i in kept.tolist()], settings))
    return table.to_plain() if table is not None else {}


@contextmanager
def _nothing_remembered(model: Model) -> Iterator[None]:
    """Vectors that training remembers would cost no bytes."""
    traversal: Any = getattr(model, "traversal", None)
    memory = getattr(traversal, "memory", None)
    if memory is not None:
        traversal.memory = None
    try:
        yield
    finally:
        if memory is not None:
            traversal.memory = memory


def check_save(predictor: Predictor, settings: Settings, path: str | os.PathLike[str]) -> None:
    """Refuse a copy of the model with a table of exits that could not be made, or written.

    Raises:
        ConfigError: says why.
    """
    if settings.depth == 0 or not goes_by_depth(predictor.card, settings):
        raise ConfigError(
            f"{path}: no table of held-out exits can be made: no image leaves early of method "
            f"{predictor.card.method!r} with these options; it takes some depth, and no budget of a selection"
        )
    if settings.stop_at is not None:
        raise ConfigError(f"{path}: a table of held-out exits is made from a run in which no image leaves early")
    try:
        if Path(path).exists():
            raise ConfigError(f"{path}: exists already; name a new file for the copy of the model")
        if not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def save_with_exits(predictor: Predictor, run: Run, path: str | os.PathLike[str]) -> None:
    """Write a copy of the model with the table of a run.

    Raises:
        ConfigError: none of its images could be read, or none is large enough for a second depth.
    """
    table = exit_table(run)
    if table is None:
        raise ConfigError(f"{path}: not written: no image could be read, or none is large enough for a second depth")
    save_model(path, predictor.model, replace(predictor.card, exits=table.to_plain()))
