"""Options that cannot be right are refused by name, value and range: typed, in a file, and in a model's card."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pyrtrav.config import make_config, parse_assignments
from pyrtrav.encoders import build_encoder
from pyrtrav.errors import ConfigError, ModelFileError
from pyrtrav.methods import find_method
from pyrtrav.methods.fcn import FcnConfig
from pyrtrav.methods.mil import MilConfig
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.model_file import EncoderSpec, ModelCard, load_model, save_model
from pyrtrav.training.options import TrainingConfig
from tests.small import SmallEncoder, random_image

SHARES = [-0.1, 1.1, math.nan, math.inf]
WEIGHTS = [-0.1, math.nan, math.inf]
ABOVE = [0.0, -1.0, math.nan, math.inf]
PROBABILITIES = [0.0, 1.0, -0.5, math.nan]

TRAINING: list[tuple[str, list[Any], str]] = [
    ("clip", ABOVE, "above 0"),
    ("lr", [*ABOVE, 1e39], "above 0 and at most 1e+12"),
    ("weight_decay", [*WEIGHTS, 1e39], "0 or more and at most 1e+12"),
    ("label_smoothing", [-0.1, 1.0, math.nan], "0 or more and below 1"),
    ("class_weights", [(1.0, math.inf), (math.nan, 1.0), (1.0, 0.0), (1.0, -1.0)], "above 0"),
    ("epochs", [0, True, (1, 0), (2, True)], "1 or more"),
    ("batch_size", [0, True], "1 or more"),
    ("accumulate", [0], "1 or more"),
    ("accumulate", [17], "at most batch_size"),
    ("jitter", [1.0, math.nan], "0 or more and below 1"),
    ("shift", SHARES, "0 or more and at most 1"),
    ("patience", [-1], "0 or more"),
]
TOPDOWN: list[tuple[str, list[Any], str]] = [
    *((f"lambda_{letter}", WEIGHTS, "0 or more") for letter in "ftrveg"),
    *((name, SHARES, "0 or more and at most 1") for name in ("explore", "explore_cells", "guide", "hint_fall")),
    *((name, PROBABILITIES, "above 0 and below 1") for name in ("initial_probability", "c_r")),
    *((name, ABOVE, "above 0") for name in ("finest_mpp", "hint_balance", "c_t")),
    ("max_depth", [-1, 33, True], "0 or more and at most 32"),
    ("samples", [0], "1 or more"),
    ("level_weights", [-1.0, math.nan, (1.0, math.inf, 1.0)], "0 or more"),
    ("c_t", [(2.0, math.nan), (0.0, 3.0)], "above 0"),
    ("c_t", [(4.0, 3.0)], "not fall"),
    ("c_t", [(2.0,)], "1 values for 2 depths"),
    ("c_t", [(9.0, 20.0)], "of depth 1 must be below 9"),
    ("c_t", [(5.0, 58.0)], "of depth 2 must be below 58"),
    ("side", [0.0, 1.0, 1e-310, math.nan], "above 1e-06 and below 1"),
    ("cells", [1, 10**6], "2 or more and at most 1000"),
]
OTHERS: list[tuple[type[Any], str, list[Any], str]] = [
    (FcnConfig, "halvings", [-1, True], "0 or more"),
    (MilConfig, "depth", [-1, True], "0 or more"),
    (MilConfig, "tiles", [0], "1 or more"),
    (MilConfig, "dropout", [1.0, math.nan], "0 or more and below 1"),
    (MilConfig, "skip_background", [0.0, 1.1, math.nan], "above 0 and at most 1"),
]
CASES = [
    *((TrainingConfig, *case) for case in TRAINING),
    *((TopDownConfig, *case) for case in TOPDOWN),
    *OTHERS,
]
EACH = [
    pytest.param(kind, name, value, words, id=f"{kind.__name__}-{name}-{value}")
    for kind, name, values, words in CASES
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value", "words"), EACH)
def test_impossible_values_are_refused(kind: type[Any], name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**{name: value})
    message = str(refused.value)
    assert name in message
    assert words in message
    assert str(value) in message


@pytest.mark.parametrize("kind", [TrainingConfig, TopDownConfig, FcnConfig, MilConfig])
def test_true_is_no_number(kind: type[Any]) -> None:
    """Nor is a number taken for what says yes or no by being typed into a number's place."""
    for name, default in asdict(kind()).items():
        if isinstance(default, bool):
            assert getattr(make_config(kind, {name: True}), name) is True
        elif not isinstance(default, str):
            with pytest.raises(ConfigError, match=name):
                make_config(kind, parse_assignments([f"{name}=true"]))
    with pytest.raises(ConfigError, match="epochs"):
        make_config(TrainingConfig, parse_assignments(["epochs=[1,true]"]))


def test_the_ends_of_the_ranges_are_allowed() -> None:
    TrainingConfig(label_smoothing=0.0, weight_decay=0.0, accumulate=16, shift=1.0, class_weights=(1e-3, 5.0))
    TopDownConfig(explore=1.0, explore_cells=0.0, lambda_f=0.0, c_t=(8.9, 57.0), c_r=None, initial_probability=None)
    TopDownConfig(max_depth=0, c_t=())
    TopDownConfig(max_depth=32)
    MilConfig(tiles=None, skip_background=1.0)


@pytest.mark.parametrize(("cells", "side"), [(3, 0.5), (2, 0.5), (2, 1 / 3), (2, 0.25), (5, 0.25)])
def test_cells_on_offer_are_counted(cells: int, side: float) -> None:
    """Against all places that paths lead to; where cells leave gaps, none leads into one."""
    config = TopDownConfig(max_depth=3, cells=cells, side=side, c_t=1.0)
    places, total = {0}, 0
    for depth in (1, 2, 3):
        places = {round(1 / side) * place + cell for place, cell in itertools.product(places, range(cells))}
        total += len(places) ** 2
        assert config.cells_on_offer(depth) == total


def test_more_cells_than_there_are_count_as_half_of_them() -> None:
    """One c_t for a model that is too shallow for it: it would have to attend everything, always."""
    shallow = TopDownConfig(max_depth=1)
    assert shallow.c_t == 12.0
    assert shallow.cells_wanted(1) == pytest.approx(4.5)
    assert shallow.even_probability(1) == pytest.approx(0.5)
    assert TopDownConfig(max_depth=1, c_t=9.0).cells_wanted(1) == pytest.approx(4.5)
    assert TopDownConfig(max_depth=1, c_t=8.0).cells_wanted(1) == pytest.approx(8.0)
    assert TopDownConfig(max_depth=2, c_t=58.0).cells_wanted(2) == pytest.approx(29.0)
    assert TopDownConfig(max_depth=2, c_t=58.0, share_cells=False).cells_wanted(2) == pytest.approx(58.0)


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({"level_weights": (1.0, 0.0, 0.0)}, True),
        ({"level_weights": 0.0}, False),
        ({"level_weights": (0.0, 0.0, 1.0), "gradual": True}, False),
        ({"level_weights": (0.0, 1.0, 0.0), "gradual": True}, True),
        ({"level_weights": 0.0, "max_depth": 0, "gradual": True}, False),
    ],
)
def test_every_stage_has_a_level_that_counts(options: dict[str, Any], fits: bool) -> None:
    TopDownConfig(**options)  # without (6) they mean nothing
    if fits:
        TopDownConfig(multi_level=True, **options)
        return
    with pytest.raises(ConfigError, match="level_weights must be above 0 for some depth"):
        TopDownConfig(multi_level=True, **options)


def test_the_deepest_level_is_reported_even_where_it_does_not_count() -> None:
    config = TopDownConfig(max_depth=1, c_t=3.0, multi_level=True, level_weights=(1.0, 0.0), lambda_v=0.0)
    torch.manual_seed(0)
    model = TopDown(config, SmallEncoder(), 3)
    images, labels = [random_image(0), random_image(1)], torch.tensor([0, 2])
    loss, metrics, trace = LearningRule(config, 1)(model, images, labels, torch.Generator().manual_seed(0))
    target = labels.repeat_interleave(config.samples)
    for depth, name in ((0, "_0"), (1, "")):
        expected = torch.nn.functional.cross_entropy(model.believe(trace, depth), target).detach()
        assert metrics[f"loss{name}"] == pytest.approx(float(expected), rel=1e-5)
        if depth == 0:
            torch.testing.assert_close(loss.detach(), expected)
    assert {"accuracy", "accuracy_0"} <= metrics.keys()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("topdown", {"c_t": [9.0, 20.0]}),
        ("topdown", {"lambda_f": -1.0}),
        ("topdown", {"c_t": math.nan}),
        ("topdown", {"finest_mpp": 0.0}),
        ("topdown", {"initial_probability": 1.0}),
        ("topdown", {"max_depth": 1000}),
        ("topdown", {"max_depth": True}),
        ("topdown", {"side": 1e-310}),
        ("topdown", {"multi_level": True, "level_weights": 0.0}),
        ("mil", {"dropout": math.nan}),
        ("fcn", {"halvings": -1}),
    ],
)
def test_a_model_file_with_such_options_is_refused(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    widths = {"base_resolution": 16, "widths": [4, 8]}
    encoder, found = build_encoder("residual", **widths), find_method(method)
    config = found.Config()
    card = ModelCard(method, EncoderSpec("residual", widths), asdict(config), ("a", "b"), encoder.channels)
    card = replace(card, max_depth=getattr(config, "max_depth", 0), selection={"select": "all"})
    model = found.build(config, encoder, 2)
    save_model(path, model, card)
    assert load_model(path).card.method == method
    with safetensors.safe_open(path, "pt") as opened:
        described = json.loads(opened.metadata()["pyrtrav"])
    described["config"] |= options
    safetensors.torch.save_file(model.state_dict(), path, metadata={"pyrtrav": json.dumps(described)})
    with pytest.raises(ModelFileError, match=f"model.safetensors: .*{list(options)[-1]}"):
        load_model(path)
