"""Image models of `transformers`: found by name or folder, with their preprocessing, or built from a configuration.

Weights come as safetensors only, and no code comes with a model: loading runs nothing foreign.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import nn

from pyrtrav.errors import ConfigError

FAILURES = (OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError, AttributeError, SafetensorError)
"""What the library raises where a model is not found, torn, of another kind or another version."""

DISPENSABLE = ("mask_token", "pooler")
"""Weights that a checkpoint may lack: nothing is masked here, and a model without its pooler has other vectors."""

NOT_KEPT = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
)
"""Parts of a configuration that say where a model came from, or belong to another task."""


class Found(NamedTuple):
    """A pretrained model, as it came."""

    model: nn.Module
    pooled: bool
    """Whether its pooler, if it has one, came with weights; else they are random."""


class Preprocessing(NamedTuple):
    """What a model wants of patches in 0..1; None where its folder does not say."""

    mean: list[float] | None = None
    std: list[float] | None = None
    side: int | None = None


def load(source: str) -> Found:
    """Return the model of a folder or of huggingface.co; of a model of images and text the half that sees.

    Raises:
        ConfigError: it cannot be found or loaded, or is no image model.
    """
    auto = _transformers()
    advice = (
        "it must be a folder with config.json and model.safetensors, or a model of huggingface.co. Without network, "
        f"get it on a connected machine by `hf download {source} --local-dir FOLDER`, and name the folder: "
        "--encoder hf:FOLDER"
    )
    with _told(source, advice), _quiet():
        config = auto.AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        model, report = auto.AutoModel.from_pretrained(
            source, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    _check_sees(source, model)
    missing = sorted(report["missing_keys"])
    needed = [key for key in missing if not set(key.split(".")) & set(DISPENSABLE)]
    if needed:
        raise ConfigError(f"encoder hf:{source}: its file lacks {len(needed)} weights of the model, first {needed[0]}")
    return Found(model.float(), not any("pooler" in key.split(".") for key in missing))


def build(source: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the model of a kept configuration, with new weights; reads no file.

    Raises:
        ConfigError: this version of transformers knows no such model.
    """
    auto = _transformers()
    advice = f"transformers {auto.__version__} does not build it; try a newer one: pip install -U 'pyrtrav[hf]'"
    with _told(source, advice), _quiet():
        model = auto.AutoModel.from_config(auto.AutoConfig.for_model(**config), trust_remote_code=False)
    _check_sees(source, model)
    return model.float()  # type: ignore[no-any-return]


def described(model: Any) -> dict[str, Any]:
    """Return the configuration with all its values, as `build` takes it."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in config.items() if name not in NOT_KEPT}


def preprocessing(source: str) -> Preprocessing:
    """Return what the folder's `preprocessor_config.json` says; nothing where there is none."""
    mixin = _transformers("transformers.image_processing_base").ImageProcessingMixin
    try:
        with _quiet():
            # The processors themselves would need torchvision.
            said: dict[str, Any] = mixin.get_image_processor_dict(source)[0]
    except OSError:
        return Preprocessing()
    size = said.get("crop_size") if said.get("do_center_crop", "crop_size" in said) else None
    side = side_of(size or said.get("size"))
    if not said.get("do_normalize", True) or "image_mean" not in said or "image_std" not in said:
        return Preprocessing(side=side)
    # Rescaled by something else than 1/255, its 0..1 is a multiple of ours.
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    offset = 1.0 if said.get("rescale_offset") else 0.0
    mean = [(float(value) + offset) / scale for value in said["image_mean"]]
    return Preprocessing(mean, [float(value) / scale for value in said["image_std"]], side)


def side_of(size: Any) -> int | None:
    """Return the side of a square as configurations write it: a number, a pair, or named sides."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    elif isinstance(size, list | tuple):
        size = size[0] if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None


def _check_sees(source: str, model: Any) -> None:
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ConfigError(f"encoder hf:{source}: {type(model).__name__} is no model of images")


def _transformers(name: str = "transformers") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError("a pretrained encoder needs the extra `hf`: pip install 'pyrtrav[hf]'") from error


@contextmanager
def _told(source: str, advice: str) -> Iterator[None]:
    """Whatever the library raises as a ConfigError that says what to do."""
    try:
        yield
    except FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"encoder hf:{source}: cannot be loaded ({reason}); {advice}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's loading bars and its report on weights, which `load` judges itself."""
    logging = _transformers("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
