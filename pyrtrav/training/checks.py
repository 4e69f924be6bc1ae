"""What stops a run: options that do not fit it, a folder in use, images that cannot be read, numbers that run away.

All processes that train together are stopped alike, and nothing is written over what was good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from pyrtrav import ranks
from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.training.data import Dataset
from pyrtrav.training.options import TrainingConfig
from pyrtrav.training.tensorboard import find_tensorboard

CHECKPOINT = "checkpoint.safetensors"
WRITTEN = (CHECKPOINT, "log.jsonl", "summary.json", "learning_curve.png", "model.safetensors", "tensorboard")
"""What a run leaves in its folder."""

MAX_FAILED = 0.05
"""Share of training images that may be unreadable in an epoch."""


def check_plan(config: TrainingConfig, dataset: Dataset, channels: int) -> None:
    """Refuse options that do not fit the images, the model's channels or this machine, before anything is written.

    Raises:
        ConfigError: names the option.
    """
    if config.hed and channels != 3:
        raise ConfigError(f"hed changes stains, which need models of 3 channels, not {channels}; set hed=0")
    if config.tensorboard:
        find_tensorboard()
    _check_validation(config, dataset)
    _check_processes(config, len(dataset.split("train")))


def _check_validation(config: TrainingConfig, dataset: Dataset) -> None:
    judged = {example.label for example in dataset.split("val")}
    if not judged and (config.keep != "last" or config.patience):
        raise ConfigError("keep and patience judge by validation images, and there are none; give a split val")
    if config.keep == "auroc" and len(judged) < 2:
        raise ConfigError("keep=auroc needs validation images of two classes or more, and all are of one; keep by loss")


def _check_processes(config: TrainingConfig, images: int) -> None:
    """Each process needs an image of its own in each part of each step."""
    smallest = images // steps_of(images, config.batch_size)
    if ranks.count() > 1 and smallest // config.accumulate < ranks.count():
        raise ConfigError(
            f"{ranks.count()} processes share each step's {smallest} images in {config.accumulate} parts, which leaves "
            "some without any; raise batch_size or lower accumulate"
        )


def steps_of(images: int, batch_size: int) -> int:
    """Steps of an epoch."""
    return -(-images // batch_size)


def check_folder(folder: Path) -> None:
    """Refuse a new run where another one left something.

    Raises:
        ConfigError: names what is there.
    """
    # The log is made before the first checkpoint: an empty one is of a run that was killed between the two.
    own = [name for name in WRITTEN if _holds_something(folder / name)]
    found: list[str] = max(ranks.gather(own), key=len)
    if CHECKPOINT in found:
        raise ConfigError(f"{folder}: holds another run; go on with --resume, or choose another --out")
    if found:
        raise ConfigError(f"{folder}: holds another run's {', '.join(found)}; move it away, or choose another --out")


def _holds_something(path: Path) -> bool:
    return path.is_dir() or (path.exists() and path.stat().st_size > 0)


def check_failed(failed: Mapping[str, str], images: int, *, strict: bool) -> str | None:
    """Say what could not be read in the epoch so far.

    Raises:
        DatasetError: it is too much of the ``images``, or anything at all with ``strict``.
    """
    if not failed:
        return None
    first = next(iter(failed.values()))
    named = f"{len(failed)} of {images} training images cannot be read, first: {first}"
    if strict or len(failed) > MAX_FAILED * images:
        limit = "none may fail with strict" if strict else f"at most {MAX_FAILED:.0%} may fail in an epoch"
        raise DatasetError(
            f"{named}; {limit}: mend them and go on with --resume, or remove them and train anew into another --out"
        )
    return named


def check_metrics(totals: Mapping[str, float], place: str, config: TrainingConfig) -> None:
    """Stop a run whose loss, or anything else that it counts, is no finite number any more.

    Raises:
        ConfigError: says since when, and what to do.
    """
    for name, value in totals.items():
        if not math.isfinite(value):
            raise _diverged(f"the {name.replace('_', ' ')} is", place, config)


def check_weights(model: torch.nn.Module, place: str, config: TrainingConfig) -> None:
    """Stop a run whose weights are not finite; to be asked before they are judged or saved.

    Raises:
        ConfigError: says since when, and what to do.
    """
    finite = all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values())
    if not all(ranks.gather(finite)):
        raise _diverged("weights are", place, config)


def _diverged(what: str, place: str, config: TrainingConfig) -> ConfigError:
    spoken = ", ".join(f"{lr:g}" for lr in (config.lr if isinstance(config.lr, tuple) else (config.lr,)))
    return ConfigError(
        f"{what} not finite since {place}: the steps are too long. Lower lr (now {spoken}) or clip (now "
        f"{config.clip:g}) and train anew into another --out"
    )
