"""The log for TensorBoard, with the extra ``tensorboard``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError
from pyrtrav.training.log import EpochReport


def find_tensorboard() -> Any:
    """Return the module that writes events.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        install = "pip install 'pyrtrav[tensorboard]'"
        raise ConfigError(f"tensorboard=true needs the extra `tensorboard`: {install}") from error


class TensorBoard:
    """Writes every epoch's metrics as scalars; ``val_accuracy`` stands beside ``accuracy`` as ``accuracy/val``."""

    def __init__(self, folder: Path, done: int) -> None:
        """``done``: epochs that were logged before; what a crash left beyond them is dropped.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        self._writer = find_tensorboard().SummaryWriter(str(folder), purge_step=done + 1)
        self._done = done

    def add(self, report: EpochReport) -> None:
        self._done += 1
        for name, value in {**report.metrics, "seconds": report.seconds}.items():
            kind = "val" if name.startswith("val_") else "train"
            self._writer.add_scalar(f"{name.removeprefix('val_')}/{kind}", value, self._done)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
