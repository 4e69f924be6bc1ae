"""What every method promises with every encoder that it takes; a new method is picked up by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrtrav.encoders import ENCODERS
from pyrtrav.errors import ConfigError
from pyrtrav.methods import METHODS
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, load_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.tree import RESULT_SCHEMA, TREE_SCHEMA, check
from tests.samples import compared

# Options that keep the models small; an encoder that is not named is used as it is.
SMALL: dict[str, dict[str, Any]] = {"residual": {"base_resolution": 16, "widths": [4, 8]}}

PAIRS = [
    (method, encoder)
    for method in METHODS
    for encoder in ENCODERS
    if METHODS[method].encoders is None or encoder in (METHODS[method].encoders or ())
]


@pytest.fixture(params=PAIRS, ids="-".join)
def predictor(request: pytest.FixtureRequest, tmp_path: Path) -> Predictor:
    """An untrained model, written and read back."""
    method, name = request.param
    torch.manual_seed(0)
    config = METHODS[method].Config()
    options = SMALL.get(name, {})
    channels = 1 if name.startswith("mnist") else 3
    depth = getattr(config, "max_depth", 0)
    card = ModelCard(
        method,
        EncoderSpec(name, options),
        {},
        ("a", "b", "c"),
        channels,
        max_depth=depth,
        selection={"select": "topk", "k": 2} if depth else {"select": "all"},
    )
    save_model(tmp_path / "model.safetensors", build_model(card), card)
    return Predictor(load_model(tmp_path / "model.safetensors"), device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for i, (width, height) in enumerate([(150, 130), (90, 140), (11, 7)]):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    return paths


def test_trees_and_records_are_valid_and_repeat(predictor: Predictor, images: list[Path]) -> None:
    first, again = (predictor.predict(images) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.tree is not None
        assert other.tree is not None
        check(one.record, RESULT_SCHEMA, "record")
        check(one.tree.to_dict(), TREE_SCHEMA, "tree")
        assert compared(one.record) == compared(other.record)
        assert one.tree.nodes == other.tree.nodes
        assert one.record["cost"]["macs"] > 0
        assert one.record["cost"]["pixels_encoded"] >= one.record["cost"]["fixations"]


def test_options_mean_something_or_are_refused(predictor: Predictor, images: list[Path]) -> None:
    supports = METHODS[predictor.card.method].supports
    asked: dict[str, dict[str, Any]] = {"budget": {"budget": 3}, "select": {"select": "sample"}, "cells": {"depth": 0}}
    for feature, options in asked.items():
        if feature not in supports:
            with pytest.raises(ConfigError, match="has no option"):
                predictor.settings(**options)
            continue
        for outcome in predictor.predict(images, predictor.settings(**options)):
            assert outcome.tree is not None
            assert len(outcome.tree.nodes) <= {"budget": 3, "cells": 1, "select": 4096}[feature]


def test_every_part_is_trained(predictor: Predictor) -> None:
    """After the last stage's loss every weight has a gradient."""
    model = predictor.model
    channels = predictor.card.channels
    config = METHODS[predictor.card.method].Config()
    stage = METHODS[predictor.card.method].stages(config)[-1]
    pixels = [np.random.default_rng(i).integers(0, 255, (300, 300, 3), np.uint8) for i in range(3)]
    views = [ArrayPyramid(p, channels=channels) for p in pixels]
    loss, metrics, _ = stage.objective(model, views, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    loss.backward()
    assert np.isfinite(metrics["loss"])
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []
