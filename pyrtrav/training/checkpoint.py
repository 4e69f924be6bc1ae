"""The state of a training run between two epochs, as safetensors: nothing in it can run code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyrtrav.errors import ConfigError
from pyrtrav.files import written_whole


class Position(NamedTuple):
    """Where a run stands: epochs of a stage that are done."""

    stage: int
    epoch: int


def save_checkpoint(
    path: Path,
    position: Position,
    identity: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objectives: Sequence[torch.nn.Module],
) -> None:
    """Write everything that the next epoch needs, whole or not at all."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    for number, objective in enumerate(objectives):
        tensors |= {f"objective.{number}.{name}": value for name, value in objective.state_dict().items()}
    metadata = {"position": json.dumps(position), "identity": _digest(identity)}
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with written_whole(path) as beside:
        safetensors.torch.save_file(whole, beside, metadata=metadata)


def load_checkpoint(
    path: Path,
    identity: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objectives: Sequence[torch.nn.Module],
) -> Position:
    """Put a saved state back.

    Raises:
        ConfigError: there is none, it is damaged, or it belongs to a run with other options or other images.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ConfigError(f"{path.parent}: holds no run to resume; start one without --resume") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path}: the checkpoint is damaged ({error}); start anew in another folder") from error
    if metadata.get("identity") != _digest(identity):
        raise ConfigError(f"{path}: belongs to a run with other options or images; resume with the same ones")
    model.load_state_dict(_under("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for number, objective in enumerate(objectives):
        objective.load_state_dict(_under(f"objective.{number}.", tensors))
    return Position(*json.loads(metadata["position"]))


def _digest(identity: str) -> str:
    # Paths and options of thousands of images would not fit a header.
    return hashlib.sha256(identity.encode()).hexdigest()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
