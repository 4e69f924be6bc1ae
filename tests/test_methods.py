"""What every method promises with every encoder that it takes; a new method is picked up by itself."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pyrtrav.encoders import ENCODERS
from pyrtrav.errors import ConfigError
from pyrtrav.methods import METHODS
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, load_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import Settings
from pyrtrav.tree import RESULT_SCHEMA, TREE_SCHEMA, check
from tests.samples import TISSUE, compared

# Options that keep the models small; an encoder that is not named is used as it is.
SMALL: dict[str, dict[str, Any]] = {
    "residual": {"base_resolution": 16, "widths": [4, 8]},
    "multigrid": {"base_resolution": 32, "network": "MG-6"},
    "multires": {"base_resolution": 32, "blocks": 2},
}

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
    asked: dict[str, dict[str, Any]] = {
        "budget": {"budget": 3},
        "select": {"select": "sample"},
        "cells": {"depth": 0},
        "exit": {"stop_at": 0.0},
    }
    for feature, options in asked.items():
        if feature not in supports:
            with pytest.raises(ConfigError, match="has no option"):
                predictor.settings(**options)
            continue
        for outcome in predictor.predict(images, predictor.settings(**options)):
            assert outcome.tree is not None
            assert len(outcome.tree.nodes) <= {"budget": 3, "cells": 1, "exit": 1, "select": 4096}[feature]


def test_every_part_is_trained(predictor: Predictor) -> None:
    """After the losses of all stages every weight has a gradient."""
    model = predictor.model
    channels = predictor.card.channels
    config = METHODS[predictor.card.method].Config()
    pixels = [np.random.default_rng(i).integers(0, 255, (300, 300, 3), np.uint8) for i in range(3)]
    views = [ArrayPyramid(p, channels=channels) for p in pixels]
    for stage in METHODS[predictor.card.method].stages(config):
        loss, metrics, _ = stage.objective(model, views, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
        loss.backward()
        assert np.isfinite(metrics["loss"])
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_believed_of_an_image_that_failed(method: str, tmp_path: Path) -> None:
    """Its coarse levels are whole, so that a glance at it succeeds; what fails lies below."""
    whole, damaged = TISSUE / "val" / "lesion" / "003.tif", tmp_path / "damaged.tif"
    shutil.copy(whole, damaged)
    with tifffile.TiffFile(whole) as file, open(damaged, "r+b") as copy:
        for start, length in zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True):
            copy.seek(start)
            copy.write(bytes(length))
    torch.manual_seed(0)
    finest: dict[str, dict[str, Any]] = {
        "fcn": {"halvings": 4},
        "mil": {"depth": 4},
        "mgnet": {"glimpses": 5, "least_scale": 0.05, "most_scale": 0.06},
        "gfnet": {"looks": 5},
    }
    options = finest.get(method, {"max_depth": 4})
    card = ModelCard(method, EncoderSpec("residual", {"base_resolution": 64, "widths": [4, 8]}), options, ("a", "b"), 3)
    model = build_model(card).eval()
    for weight in model.parameters():  # zero biases would hide what is believed of nothing
        torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad(), open_pyramid(damaged, channels=3) as bad, open_pyramid(whole, channels=3) as good:
        assert bad.read_many([bad.bounds], 64).errors == [None]
        for depth in (0, 4):
            trace = model.look([bad, good], Settings("all", depth=4))
            assert [error is None for error in trace.errors] == [False, True]
            logits = model.believe(trace, depth)
            assert not logits[0].any()
            torch.testing.assert_close(logits[1], model.believe(model.look([good], Settings("all", depth=4)), depth)[0])
        assert not model.believe(model.look([bad], Settings("all", depth=4)), 4).any()


@pytest.mark.parametrize("method", METHODS)
def test_where_no_image_can_be_read_nothing_is_believed(method: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    shutil.copy(TISSUE / "val" / "lesion" / "003.tif", path)
    with tifffile.TiffFile(path) as file, open(path, "r+b") as copy:
        for page in [level.keyframe for level in file.series[0].levels]:
            for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                copy.seek(start)
                copy.write(bytes(length))
    torch.manual_seed(0)
    card = ModelCard(method, EncoderSpec("residual", {"base_resolution": 64, "widths": [4, 8]}), {}, ("a", "b"), 3)
    model = build_model(card).eval()
    with open_pyramid(path, channels=3) as bad:
        trace = model.look([bad, bad], Settings("all", depth=1))
        assert trace.errors != [None, None]
        assert not model.believe(trace, 1).any()
        assert len(model.macs(trace.until(0))) == 2
        for stage in METHODS[method].stages(METHODS[method].Config()):
            stage.objective(model, [bad, bad], torch.tensor([0, 1]), torch.Generator().manual_seed(0))


def test_reading_is_timed_apart_from_encoding(predictor: Predictor) -> None:
    path = TISSUE / "val" / "lesion" / "003.tif"
    predictor.predict([path])  # what is made ready once is no part of it
    shared_cache().clear()
    seconds = predictor.predict([path])[0].record["cost"]["seconds"]
    assert seconds["read"] > 0
    assert seconds["encode"] > 0
    assert seconds["open"] + seconds["read"] + seconds["encode"] <= seconds["total"] + 1e-5
