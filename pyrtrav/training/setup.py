"""From what a user asks for to what a trainer needs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyrtrav.config import field_names, make_config, parse_assignments, read_toml
from pyrtrav.encoders import build_encoder, find_encoder
from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.methods import find_method
from pyrtrav.model_file import EncoderSpec, ModelCard
from pyrtrav.training.data import Dataset
from pyrtrav.training.options import TrainingConfig

SECTIONS = ("method", "training", "encoder")


def sort_options(
    method: str, encoder: str, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the options of the method, of training and of the encoder, each found by its name.

    ``section.name``, or a table of a TOML file, says which is meant.

    Raises:
        ConfigError: an unknown name; suggests the nearest.
    """
    known = {
        "method": field_names(find_method(method).Config),
        "training": field_names(TrainingConfig),
        "encoder": set(inspect.signature(find_encoder(encoder)).parameters),
    }
    sorted_: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in _flat(values).items():
        section, _, short = name.rpartition(".")
        homes = [section] if section else [s for s in SECTIONS if name in known[s]]
        if section and section not in SECTIONS:
            raise ConfigError(f"unknown section {section!r} of option {name!r}; known: {', '.join(SECTIONS)}")
        if not homes or short not in known[homes[0]]:
            raise ConfigError(f"unknown option {name!r}{nearest_name(short, set().union(*known.values()))}")
        sorted_[homes[0]][short] = value
    return sorted_["method"], sorted_["training"], sorted_["encoder"]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat


def plan_training(
    dataset: Dataset,
    *,
    method: str = "topdown",
    encoder: str = "residual",
    config_file: str | Path | None = None,
    assignments: Sequence[str] = (),
    purpose: str = "",
) -> tuple[ModelCard, TrainingConfig]:
    """Return the card of the model to train and how to train it; ``assignments`` overrule the file."""
    values = read_toml(config_file) if config_file is not None else {}
    values = {**_flat(values), **parse_assignments(assignments)}
    method_options, training_options, encoder_options = sort_options(method, encoder, values)
    config = make_config(find_method(method).Config, method_options)
    # With its defaults written out: a model file outlives them.
    defaults = inspect.signature(find_encoder(encoder)).parameters.values()
    encoder_options = {p.name: p.default for p in defaults} | encoder_options
    built = build_encoder(encoder, **encoder_options)
    card = ModelCard(
        method=method,
        encoder=EncoderSpec(encoder, encoder_options),
        config=dataclasses.asdict(config),
        classes=dataset.classes,
        channels=built.channels,
        max_depth=getattr(config, "max_depth", 0),
        purpose=purpose,
    )
    return card, make_config(TrainingConfig, training_options)
