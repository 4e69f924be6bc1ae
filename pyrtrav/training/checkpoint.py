"""The state of a training run between two steps, as safetensors: nothing in it can run code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyrtrav.errors import ConfigError
from pyrtrav.files import written_whole
from pyrtrav.training.progress import Progress

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One file, and everything that the next step needs: written whole or not at all, put back exactly."""

    path: Path
    identity: str
    """What must agree for a run to be resumed: options, seed and images."""
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    objectives: Sequence[torch.nn.Module]

    def save(self, progress: Progress, best: Weights | None = None) -> None:
        """Write the state; ``best`` are the weights that are kept beside the current ones."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        for number, objective in enumerate(self.objectives):
            tensors |= {f"objective.{number}.{name}": value for name, value in objective.state_dict().items()}
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"progress": progress.to_json(), "identity": _digest(self.identity)}
        with written_whole(self.path) as beside:
            safetensors.torch.save_file(whole, beside, metadata=metadata)

    def load(self) -> tuple[Progress, Weights | None]:
        """Put a saved state back; returns where the run stood, and the weights that it kept.

        Raises:
            ConfigError: there is none, it is damaged, or it belongs to a run with other options or other images.
        """
        path = self.path
        try:
            with safetensors.safe_open(path, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise ConfigError(f"{path.parent}: holds no run to resume; start one without --resume") from error
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(f"{path}: the checkpoint is damaged ({error}); start anew in another folder") from error
        if metadata.get("identity") != _digest(self.identity) or "progress" not in metadata:
            raise ConfigError(f"{path}: belongs to a run with other options or images; resume with the same ones")
        self.model.load_state_dict(_under("model.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for number, objective in enumerate(self.objectives):
            objective.load_state_dict(_under(f"objective.{number}.", tensors))
        return Progress.from_json(metadata["progress"]), _under("best.", tensors) or None


def _digest(identity: str) -> str:
    # Paths and options of thousands of images would not fit a header.
    return hashlib.sha256(identity.encode()).hexdigest()


def _under(prefix: str, tensors: Weights) -> Weights:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
