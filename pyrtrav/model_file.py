"""A model in one file: safetensors, whose metadata say how to build it and how it wants its pixels.

Nothing else is needed to classify, and loading runs no code from the file.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pyrtrav import __version__
from pyrtrav.config import field_names, make_config
from pyrtrav.encoders import build_encoder
from pyrtrav.errors import ConfigError, ModelFileError
from pyrtrav.exits import read_table
from pyrtrav.files import written_whole
from pyrtrav.methods import Model, find_method
from pyrtrav.selection import Settings

MODEL_SCHEMA = "pyrtrav.model/1"


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder, and with what options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """What a model file says of itself."""

    method: str
    encoder: EncoderSpec
    config: dict[str, Any]
    """The method's whole config."""
    classes: tuple[str, ...]
    channels: int
    """1 or 3: pixels as the encoder wants them."""
    chosen: tuple[int, ...] | None = None
    """Which stored channels those are; None takes the first."""
    window: tuple[float, float] | None = None
    """Display range for more than 8 bits; None is the file's own rule."""
    max_depth: int = 0
    selection: dict[str, Any] = field(default_factory=dict)
    """Selection by default: ``select`` and its ``tau`` or ``budget``."""
    exits: dict[str, Any] = field(default_factory=dict)
    """What held-out images believed and cost after each depth, which thresholds of early exit are fitted on."""
    purpose: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained and what it reached."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to look, with its card, its file's SHA-256 and its file's name."""

    model: Model
    card: ModelCard
    sha256: str
    path: str


def build_model(card: ModelCard) -> Model:
    """Build the untrained model that a card describes.

    Raises:
        ConfigError: an option is unknown, or the method does not take the encoder.
    """
    method = find_method(card.method)
    if method.encoders is not None and card.encoder.name not in method.encoders:
        raise ConfigError(
            f"method {method.name!r} does not work with encoder {card.encoder.name!r}; "
            f"it takes: {', '.join(sorted(method.encoders))}"
        )
    encoder = build_encoder(card.encoder.name, **card.encoder.options)
    return method.build(make_config(method.Config, card.config), encoder, len(card.classes))


def save_model(path: str | os.PathLike[str], model: Model, card: ModelCard) -> None:
    """Write the model file, whole or not at all."""
    described = {"schema": MODEL_SCHEMA, "version": __version__, **dataclasses.asdict(card)}
    described["encoder"]["options"] |= model.encoder.resolved
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with written_whole(path) as beside:
        safetensors.torch.save_file(weights, beside, metadata={"pyrtrav": json.dumps(described, sort_keys=True)})


def load_model(path: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Read a model file; without a path, the small sample model that ships with the package.

    Raises:
        ModelFileError: the file is missing, not ours, damaged, of another version, or does not fit its method.
    """
    source = Path(path) if path is not None else Path(str(files("pyrtrav").joinpath("models", "sample.safetensors")))
    if source.is_dir():
        raise ModelFileError(f"{source}: is a folder; name a file, such as model.safetensors in what `train` wrote")
    try:
        with safetensors.safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise ModelFileError(f"{source}: no such model file") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{source}: not a safetensors file ({error}); models are written by `pyrtrav train`"
        ) from error
    card = _read_card(source, metadata)
    try:
        model = build_model(card)
        model.load_state_dict(weights)
        _check_fit(card, model)
    except (ConfigError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise ModelFileError(f"{source}: its weights or options do not fit method {card.method!r}: {reason}") from error
    return LoadedModel(model.eval(), card, sha256, str(source))


def _read_card(source: Path, metadata: dict[str, str]) -> ModelCard:
    if "pyrtrav" not in metadata:
        raise ModelFileError(f"{source}: a safetensors file, but not a pyrtrav model; train one with `pyrtrav train`")
    try:
        described = json.loads(metadata["pyrtrav"])
        schema = described.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{source}: its description is damaged ({error})") from error
    if schema != MODEL_SCHEMA:
        raise ModelFileError(f"{source}: is a {schema} file; this version reads {MODEL_SCHEMA}")
    known = field_names(ModelCard)
    try:
        return make_config(ModelCard, {key: value for key, value in described.items() if key in known})
    except ConfigError as error:
        raise ModelFileError(f"{source}: its description is damaged ({error})") from error


def _check_fit(card: ModelCard, model: Model) -> None:
    """Raise ConfigError where the card contradicts the model that it describes."""
    if len(set(card.classes)) != len(card.classes) or not card.classes:
        raise ConfigError(f"class names must be distinct, got {list(card.classes)}")
    if len(card.chosen or ()) not in (0, card.channels) or card.channels != model.encoder.channels:
        raise ConfigError(f"channels {card.channels} of the card, {model.encoder.channels} of the encoder")
    if card.max_depth != model.max_depth:
        raise ConfigError(f"max_depth {card.max_depth} of the card, {model.max_depth} of the method")
    if not all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values()):
        raise ConfigError("some weights are not finite numbers")
    make_config(Settings, {"depth": card.max_depth, **card.selection})
    if card.exits:
        read_table(card.exits)
