"""Region hints: read strictly, turned with their image, and teaching the location module alone where to look."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from pyrtrav.encoders.base import Encoder
from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.geometry import Grid, Region
from pyrtrav.methods import METHODS
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.methods.topdown.guidance import asked_for, attached_logit, guided_images, hint_likelihood
from pyrtrav.model_file import load_model
from pyrtrav.policy_gradient import cost_penalty, diversity_penalty, log_likelihood, reinforce
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.training.augment import View
from pyrtrav.training.data import Dataset, Example, load_dataset
from pyrtrav.training.hints import Hint, Hints, check_method, load_hints
from pyrtrav.training.images import OpenImages
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.program import Done, run_program
from tests.small import SmallEncoder
from tests.toy_images import SMALL, make_images

NAMES = ("a.png", "b, c.tif", "d.ome.tif")


def dataset_of(folder: Path, names: tuple[str, ...] = NAMES) -> Dataset:
    """Nothing of the images is read here, so that none need be there."""
    examples = (Example(str(folder / name), i % 2, "train", None, "") for i, name in enumerate(names))
    return Dataset(("no", "yes"), tuple(examples), ())


def view_of(image: ArrayPyramid, *hints: Region, turns: int = 0, mirror: bool = False, base: int = 4) -> View:
    return View(image, base, turns, mirror, None, hints)


# Reading.

HEAD = "path,left,top,right,bottom\n"

ends = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted).filter(lambda pair: pair[0] < pair[1])
corners = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), ends, ends)


@given(st.lists(st.tuples(st.sampled_from(NAMES), corners), min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_a_table_is_read_as_written(tmp_path: Path, rows: list[tuple[str, tuple[float, ...]]]) -> None:
    with open(tmp_path / "boxes.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class_id", "path", "left", "top", "right", "bottom"])
        table.writerows([7, name, *box] for name, box in rows)
    found = load_hints(tmp_path / "boxes.csv", dataset_of(tmp_path))
    wanted: dict[str, list[tuple[float, ...]]] = {}
    for name, (left, top, right, bottom) in rows:
        wanted.setdefault(str(tmp_path / name), []).append((left, top, right - left, bottom - top))
    assert {path: [hint.region.as_tuple() for hint in hints] for path, hints in found.boxes.items()} == wanted


@given(st.text(max_size=60), st.sampled_from(["", HEAD, f"{HEAD}a.png,"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=120)
def test_whatever_stands_in_a_file_it_is_read_or_named(tmp_path: Path, text: str, head: str) -> None:
    for name in ("boxes.csv", "a.geojson"):
        (tmp_path / name).write_bytes((head + text).encode("utf-8", "surrogatepass"))
        try:
            load_hints(tmp_path / name, dataset_of(tmp_path))
        except DatasetError as error:
            assert name in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}a.png,1,2,3,4\nz.png,1,2,3,4\n", r"boxes.csv:3: 'z.png' is no image of the data"),
        (f"{HEAD}a.png,3,2,3,4\n", r"boxes.csv:2: the box is empty or inverted"),
        (f"{HEAD}\na.png,1,9,3,4\n", r"boxes.csv:3: the box is empty or inverted"),
        (f"{HEAD}a.png,1,2,inf,4\n", r"boxes.csv:2: .* is nowhere"),
        (f"{HEAD}a.png,nan,2,3,4\n", r"boxes.csv:2: .* is nowhere"),
        (f"{HEAD}a.png,1,2,3,\n", r"boxes.csv:2: bottom is '', which is no number"),
        (f"{HEAD}a.png,1,2,3\n", r"boxes.csv:2: 4 values where the header names 5"),
        ("path,left,top,right\n", r"boxes.csv:1: no column 'bottom'"),
        ("", r"boxes.csv:1: no column 'path'"),
    ],
)
def test_a_box_that_is_none_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_hints(tmp_path / "boxes.csv", dataset_of(tmp_path))


def feature(kind: str, coordinates: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": {}}


TRIANGLE = [[3.5, 1], [9, 4], [5, 8], [3.5, 1]]


def test_geojson_of_a_folder_is_known_by_name(tmp_path: Path) -> None:
    hole = [[5, 3], [6, 3], [6, 4], [5, 3]]
    square = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]
    content = {
        "a.png.geojson": {"type": "FeatureCollection", "features": [feature("Polygon", [TRIANGLE, hole])]},
        "d.geojson": [feature("MultiPolygon", [[TRIANGLE], [square]]), feature("Polygon", [square])],
        "b, c.geojson": {"type": "FeatureCollection", "features": []},
    }
    for name, text in content.items():
        (tmp_path / name).write_text(json.dumps(text))
    found = load_hints(tmp_path, dataset_of(tmp_path))
    triangle, box = (3.5, 1, 5.5, 7), (20, 20, 10, 10)
    assert {Path(path).name: [h.region.as_tuple() for h in hints] for path, hints in found.boxes.items()} == {
        "a.png": [triangle],
        "d.ome.tif": [triangle, box, box],
    }
    alone = load_hints(tmp_path / "a.png.geojson", dataset_of(tmp_path))
    assert [hint.region.as_tuple() for hint in alone.boxes[str(tmp_path / "a.png")]] == [triangle]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("z.geojson", "{}", r"z.geojson: no image of the data is named 'z'"),
        ("a.geojson", "{\n\n,", r"a.geojson:3: not JSON"),
        ("a.geojson", "7", r"not GeoJSON"),
        ("a.geojson", json.dumps(feature("Point", [1, 2])), r"feature 1: is a Point"),
        ("a.geojson", json.dumps([feature("Polygon", [TRIANGLE]), 3]), r"feature 2: is a thing"),
        ("a.geojson", json.dumps(feature("Polygon", [[[1, 2], ["x", 3]]])), r"coordinates are no Polygon"),
        ("a.geojson", json.dumps(feature("Polygon", [[[1, 2], [1, 3]]])), r"feature 1: the box is empty"),
        ("a.geojson", json.dumps(feature("Polygon", [[[1, 2], [float("inf"), 3]]])), r"feature 1: .* is nowhere"),
        ("b.geojson", "{}", r"may be of .*b.png and .*b.tif"),
    ],
)
def test_geojson_that_is_none_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message):
        load_hints(tmp_path / name, dataset_of(tmp_path, ("a.png", "b.png", "b.tif")))


def test_a_box_outside_of_its_image_is_left_out_and_named() -> None:
    image = ArrayPyramid(np.zeros((20, 40), np.uint8), channels=1)
    boxes = [Hint(Region(x, 5, 10, 10), f"boxes.csv:{line}") for line, x in ((2, 35), (3, 40), (4, -10), (5, -4))]
    hints = Hints({"i": boxes})
    for _ in range(2):
        assert hints.of("i", image) == (Region(35, 5, 5, 10), Region(0, 5, 6, 10))
    warnings = hints.new_warnings()
    assert [text.split(": ")[0] for text in warnings] == ["boxes.csv:3", "boxes.csv:4"]
    assert all("outside of i (40 x 20 px)" in text for text in warnings)
    assert hints.new_warnings() == []
    assert hints.of("j", image) == ()


def test_qupath_counts_from_the_corner_of_the_bounds() -> None:
    image = ArrayPyramid(np.zeros((20, 40), np.uint8), channels=1)
    image.bounds = Region(10, 5, 20, 10)
    box = Region(1, 2, 3, 4)
    assert Hints({"i": [Hint(box, "", cropped=True)]}).of("i", image) == (Region(11, 7, 3, 4),)
    assert Hints({"i": [Hint(Region(11, 7, 3, 4), "")]}).of("i", image) == (Region(11, 7, 3, 4),)


# Turning.


@given(st.integers(0, 3), st.booleans(), st.integers(0, 14), st.integers(0, 7), st.integers(1, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_hints_turn_with_the_image(turns: int, mirror: bool, x: int, y: int, width: int, height: int) -> None:
    """What a view shows in its hint is the gray box that the file holds there, and there is no more of it."""
    pixels = np.zeros((12, 20), np.uint8)
    pixels[y : y + height, x : x + width] = 100
    view = view_of(ArrayPyramid(pixels, channels=1), Region(x, y, width, height), turns=turns, mirror=mirror, base=16)
    (hint,) = view.hints
    shown = view.read_many([view.frame], 20).pixels[0, ..., 0]
    left, top = round(hint.x - view.frame.x), round(hint.y - view.frame.y)
    inside = shown[top : top + round(hint.height), left : left + round(hint.width)]
    assert (inside == 100).all()
    assert inside.size == (shown == 100).sum() == width * height


# Which cells.


@given(
    st.sampled_from([Grid(), Grid(2, 0.5), Grid(5, 0.5)]),
    *[st.floats(0, 1)] * 2,
    *[st.floats(0.01, 1.5)] * 2,
)
@settings(deadline=None)
def test_cells_that_hold_most_of_a_hint_or_its_centre_are_asked_for(
    grid: Grid, x: float, y: float, width: float, height: float
) -> None:
    """By counting points of a fine raster; and a hint whose centre a fixation holds leads on."""
    cells = [
        Region(column * grid.stride, row * grid.stride, grid.side, grid.side)
        for row in range(grid.cells)
        for column in range(grid.cells)
    ]
    box = Region(x - width / 2, y - height / 2, width, height)
    got = asked_for(np.array([c.as_tuple() for c in cells]), np.zeros(len(cells), np.int64), [[box]])
    xs, ys = (np.linspace(a, a + b, 101)[:-1] + b / 200 for a, b in ((box.x, width), (box.y, height)))
    for cell, asked in zip(cells, got, strict=True):
        in_x, in_y = (xs > cell.x) & (xs < cell.right), (ys > cell.y) & (ys < cell.bottom)
        held = in_x.mean() * in_y.mean() * box.area / (min(width, cell.width) * min(height, cell.height))
        centred = cell.x <= x < cell.right and cell.y <= y < cell.bottom
        if centred or abs(held - 0.5) > 0.05:
            assert asked == (centred or held > 0.5)
    if 0.001 < x < 0.999 and 0.001 < y < 0.999:
        assert got.any()


def test_small_hints_ask_for_two_and_a_quarter_cells_on_average() -> None:
    regions = np.array([(c * 0.25, r * 0.25, 0.5, 0.5) for r in range(3) for c in range(3)])
    places = (np.arange(32) + 0.5) / 32
    boxes = [[Region(x - 1e-4, y - 1e-4, 2e-4, 2e-4)] for x in places for y in places]
    image = np.repeat(np.arange(len(boxes)), 9)
    asked = asked_for(np.tile(regions, (len(boxes), 1)), image, boxes).reshape(-1, 9).sum(1)
    assert set(asked.tolist()) == {1, 2, 4}
    assert asked.mean() == 2.25


# Learning.


class ShadeEncoder(Encoder):
    """Its map is a one-hot of four shades: a location module on it is a table of free logits."""

    def __init__(self) -> None:
        super().__init__(channels=1, base_resolution=4, vector_size=4, map_size=(1, 1), map_channels=4)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        shade = (images.mean((1, 2, 3)) * 4).long().clamp(max=3)
        return functional.one_hot(shade, 4).to(images.dtype)[:, :, None, None]


def rule_of(model: TopDown, depth: int, **options: Any) -> LearningRule:
    return LearningRule(TopDownConfig(**{**vars(model.config), **options}), depth)


@pytest.mark.parametrize("balance", [1.0, 3.0])
def test_the_optimum_is_how_often_a_cell_is_asked_for(balance: float) -> None:
    """Images of a shade have hints in several cells: the best probabilities are the frequencies, hand-counted.

    Where a miss weighs more than a needless look, they are as the formula says.
    """
    torch.manual_seed(0)
    silent = {"lambda_f": 0.0, "lambda_t": 0.0, "lambda_r": 0.0, "lambda_v": 0.0}
    model = TopDown(TopDownConfig(max_depth=1, c_t=3.0, samples=1, **silent), ShadeEncoder(), 2).double()
    places = {0: [(2, 2), (2, 2), (2, 2), (6, 14)], 1: [(2, 6), (14, 14), (10, 6), (6, 6)], 3: [(6, 2)]}
    """Of each shade the centres of its images' hints, boxes of a pixel in images of 16 x 16."""
    images, counts = [], np.zeros((4, 9))
    for shade, centres in places.items():
        for x, y in centres:
            image = ArrayPyramid(np.full((16, 16), 32 + 64 * shade, np.uint8), channels=1)
            images.append(view_of(image, Region(x - 0.5, y - 0.5, 1, 1)))
            for column, row in itertools.product(range(3), range(3)):
                # Cells are 8 wide and 4 apart.
                inside = 4 * column < x < 4 * column + 8 and 4 * row < y < 4 * row + 8
                counts[shade, 3 * row + column] += inside / len(centres)
    rule = rule_of(model, 1, hint_balance=balance)
    optimizer = torch.optim.LBFGS(model.location.parameters(), max_iter=30, line_search_fn="strong_wolfe")
    labels = torch.zeros(len(images), dtype=torch.long)
    # The answers are not what this is about.
    frozen = [weight.requires_grad_(False) for name, weight in model.named_parameters() if "policy" not in name]
    assert frozen

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        trace = model.look(images, Settings("sample", depth=1), torch.Generator().manual_seed(0))
        loss = -hint_likelihood(trace, 1, [view.hints for view in images], trace.logit, balance)
        loss.backward()
        return loss

    optimizer.step(closure)
    _, metrics, trace = rule(model, images, labels, torch.Generator())
    reached = {(int(trace.image[p]), c): q for p, c, q in zip(trace.parent, trace.cell, trace.probability, strict=True)}
    asked = np.array([counts[shade] for shade, centres in places.items() for _ in centres])
    wanted = balance * asked / (balance * asked + 1 - asked)
    assert np.array([[reached[i, cell] for cell in range(9)] for i in range(9)]) == pytest.approx(wanted, abs=0.01)
    p = np.clip(wanted, 1e-12, 1 - 1e-12)
    least = -(balance * asked * np.log(p) + (1 - asked) * np.log(1 - p)).sum(1).mean()
    assert metrics["hint_loss"] == pytest.approx(least, abs=0.01)


def spotted(seed: int, side: int = 64, spot: int = 6) -> tuple[ArrayPyramid, Region]:
    """Noise with a small bright spot, and where that is."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (side, side), np.uint8)
    x, y = (int(place) for place in random.integers(0, side - spot, 2))
    pixels[y : y + spot, x : x + spot] = 255
    return ArrayPyramid(pixels, channels=1), Region(x, y, spot, spot)


def rule_parts(seed: int) -> tuple[TopDown, list[View], torch.Tensor]:
    torch.manual_seed(seed)
    model = TopDown(TopDownConfig(max_depth=2, c_t=4.0), SmallEncoder(), 2).double()
    views = [view_of(*spotted(i, side=16, spot=2)) for i in range(4)]
    return model, views, torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(("encoder", "trained"), [(False, ("policy",)), (True, ("policy", "encoder"))])
def test_hints_train_the_location_module_and_the_encoder_if_they_may(encoder: bool, trained: tuple[str, ...]) -> None:
    model, views, labels = rule_parts(0)
    names, weights = zip(*model.named_parameters(), strict=True)
    gradients = []
    for weight in (0.0, 1.0):
        rule = rule_of(model, 2, lambda_g=weight, hint_encoder=encoder)
        loss, _, _ = rule(model, views, labels, torch.Generator().manual_seed(5))
        gradients.append(torch.autograd.grad(loss, weights))
    for name, without, given_ in zip(names, *gradients, strict=True):
        assert torch.equal(without, given_) != any(part in name for part in trained), name


def test_attached_logits_are_those_of_the_trace() -> None:
    """In value, and in gradient for the location module; images without an edge at the deepest level included."""
    model, views, _ = rule_parts(2)
    trace = model.look(
        [*views, view_of(ArrayPyramid(np.zeros((8, 4), np.uint8), channels=1))], Settings("all", depth=2)
    )
    again = attached_logit(trace, model.location)
    torch.testing.assert_close(again, trace.logit, rtol=1e-12, atol=1e-12)
    weight = torch.randn(len(again), dtype=torch.float64)
    conv = model.location.conv.weight
    for logit in (again, trace.logit):
        (gradient,) = torch.autograd.grad((weight * logit).sum(), conv, retain_graph=True)
        wanted = torch.zeros_like(conv)
        maps = dict(zip(trace.expanded.tolist(), trace.map.detach(), strict=True))
        for edge, (parent, cell) in enumerate(zip(trace.parent.tolist(), trace.cell.tolist(), strict=True)):
            wanted[cell] += weight[edge] * maps[parent]
        torch.testing.assert_close(gradient, wanted)
    with torch.inference_mode():
        assert len(model.look(views, Settings("all", depth=2)).expanded) == 0


def test_images_without_hints_are_as_ever() -> None:
    model, views, labels = rule_parts(0)
    plain = [view.pyramid for view in views]
    losses = [rule_of(model, 2, guide=g)(model, plain, labels, torch.Generator().manual_seed(5))[0] for g in (0.0, 0.9)]
    assert torch.equal(losses[0], losses[1])
    _, metrics, _ = rule_of(model, 2)(model, plain, labels, torch.Generator())
    assert "hint_loss" not in metrics


def test_the_mean_runs_over_fixations_and_depths_and_leaves_out_images_without_hints() -> None:
    """From plain loops over the trace."""
    model, views, _ = rule_parts(1)
    trace = model.look(views, Settings("sample", depth=2), torch.Generator().manual_seed(2))
    hints = [view.hints if i != 2 else () for i, view in enumerate(views)]
    by_fixation: dict[int, float] = {}
    for edge, parent in enumerate(trace.parent.tolist()):
        image = int(trace.image[parent])
        if hints[image]:
            region = trace.cell_region[edge][None]
            asked = bool(asked_for(region, np.zeros(1, np.int64), [hints[image]])[0])
            p = float(trace.probability[edge])
            by_fixation[parent] = by_fixation.get(parent, 0.0) + np.log(p if asked else 1 - p)
    depths = [[value for parent, value in by_fixation.items() if trace.depth[parent] == depth] for depth in (0, 1)]
    wanted = np.mean([np.mean(values) for values in depths])
    assert float(hint_likelihood(trace, 2, hints, trace.logit).detach()) == pytest.approx(wanted, rel=1e-6)


def test_guided_draws_attend_the_hint_and_stay_out_of_the_policy_s_gradient() -> None:
    """Half of the draws follow: rule (4) written out for the others alone, and log p(y) for all of them."""
    model, views, labels = rule_parts(3)
    options: dict[str, Any] = {"lambda_g": 0.0, "lambda_v": 0.0, "explore": 0.0, "baseline": "average"}
    rule = rule_of(model, 2, guide=0.5, samples=4, **options)
    before = -0.4
    rule.baseline.fill_(before)
    loss, metrics, trace = rule(model, views, labels, torch.Generator().manual_seed(11))
    hints = [view.hints for view in views for _ in range(4)]
    guided = guided_images(hints, 0.5, torch.Generator().manual_seed(11))
    assert 3 < guided.sum() < 13
    asked = asked_for(trace.cell_region, trace.image[trace.parent], hints)
    assert trace.on[asked & guided[trace.image[trace.parent]]].all()
    assert not trace.on[asked & ~guided[trace.image[trace.parent]]].all()
    own = torch.from_numpy(np.flatnonzero(~guided))
    reward = log_likelihood(model.believe(trace, 2), labels.repeat_interleave(4))
    log_prob = trace.decision_log_prob(2)[own]
    edges = torch.from_numpy(~guided[trace.image[trace.parent]])
    by_cell = [torch.sigmoid(trace.logit)[edges & torch.from_numpy(trace.cell == cell)].mean() for cell in range(9)]
    wanted = (
        reward.mean()
        + reinforce(log_prob, reward[own], before)
        + 0.1 * cost_penalty(trace.expected_cells(2, shared=True)[own], 4.0)
        + 0.01 * diversity_penalty(torch.stack(by_cell), rule.config.even_probability(2))
    )
    assert float(loss.detach()) == pytest.approx(-float(wanted.detach()), rel=1e-9)
    ours, theirs = (torch.autograd.grad(x, list(model.parameters()), retain_graph=True) for x in (loss, -wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    assert metrics["loss"] == pytest.approx(-float(reward[own].mean().detach()))
    assert float(rule.baseline[2]) == pytest.approx(0.9 * before - 0.1 * metrics["loss"], rel=1e-6)


def test_all_draws_guided_leaves_the_policy_to_the_hints() -> None:
    model, views, labels = rule_parts(3)
    rule = rule_of(model, 2, guide=1.0, lambda_g=0.0)
    loss, metrics, _ = rule(model, views, labels, torch.Generator())
    loss.backward()
    assert all(float(weight.grad.abs().max()) == 0 for weight in model.location.parameters())
    assert np.isfinite(metrics["accuracy"])


def test_the_weight_falls_over_stages() -> None:
    for gradual, wanted in ((True, {1: (1.0, 0.6), 2: (0.6, 0.2)}), (False, {2: (1.0, 0.2)})):
        config = TopDownConfig(max_depth=2, gradual=gradual, hint_fall=0.2)
        for depth, ends in wanted.items():
            rule = LearningRule(config, depth)
            assert (rule.hints_left(0.0), rule.hints_left(1.0)) == pytest.approx(ends)
    with pytest.raises(ConfigError, match="guide"):
        TopDownConfig(guide=1.5)


def test_looking_reads_no_hints() -> None:
    """At test time nothing asks an image for its hints."""

    class Forbidden(View):
        @property
        def hints(self) -> tuple[Region, ...]:
            raise AssertionError("hints were read")

        @hints.setter
        def hints(self, value: tuple[Region, ...]) -> None: ...

    model, views, labels = rule_parts(0)
    hidden = [Forbidden(view.pyramid, 4, 0, False, None, view.hints) for view in views]
    trace = model.look(hidden, Settings("sample", depth=2), torch.Generator().manual_seed(0))
    plain = model.look([view.pyramid for view in views], Settings("sample", depth=2), torch.Generator().manual_seed(0))
    assert np.array_equal(trace.region, plain.region)
    with pytest.raises(AssertionError, match="were read"):
        rule_of(model, 2)(model, hidden, labels, torch.Generator())


def test_methods_without_a_policy_refuse_hints() -> None:
    hints = Hints({"i": [Hint(Region(0, 0, 1, 1), "")]})
    with pytest.raises(ConfigError, match="'fcn' has no policy"):
        check_method(METHODS["fcn"], hints)
    check_method(METHODS["fcn"], Hints())
    check_method(METHODS["topdown"], hints)
    with pytest.raises(ConfigError, match="nowhere to look"):
        check_method(METHODS["topdown"], hints, max_depth=0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.csv", HEAD, r"boxes\.csv: holds no region"),
        ("a.png.geojson", '{"type": "FeatureCollection", "features": []}', "holds no region"),
        ("folder/a.png.geojson", "[]", "folder: holds no region"),
        (
            "boxes.csv",
            HEAD + "c.png,0,0,1,1\nb.png,0,0,1,1\nb.png,0,0,2,2\n",
            "all in images of test and val, and only",
        ),
        (None, "", "boxes: no such file or folder"),
    ],
)
def test_hints_that_teach_nothing_are_refused(tmp_path: Path, name: str | None, text: str, message: str) -> None:
    splits = {"a.png": "train", "b.png": "val", "c.png": "test"}
    examples = (Example(str(tmp_path / name), 0, split, None, "") for name, split in splits.items())  # type: ignore[arg-type]
    dataset = Dataset(("no", "yes"), tuple(examples), ())
    source = tmp_path / "boxes"
    if name is not None:
        source = tmp_path / name
        source.parent.mkdir(exist_ok=True)
        source.write_text(text)
        source = tmp_path / Path(name).parts[0]
    with pytest.raises(DatasetError, match=message):
        load_hints(source, dataset)


def test_the_command_says_how_many_are_hinted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(tmp_path / "images")
    lines = [f"{split}/dark/{i}.png,0,0,10,10\n" for split, count in (("train", 3), ("val", 1)) for i in range(count)]
    (data / "boxes.csv").write_text(HEAD + "".join(lines))
    (data / "empty.csv").write_text(HEAD)

    def train(regions: str, *words: str) -> Done:
        options = [word for option in (*SMALL, "epochs=1") for word in ("--set", option)]
        given = ["train", "--data", data, "--out", tmp_path / "run", "--regions", data / regions, *options, *words]
        return run_program(capsys, monkeypatch, *given)

    for regions, words, message in (
        ("empty.csv", (), "empty.csv: holds no region"),
        ("nothing", (), "nothing: no such file or folder"),
        ("boxes.csv", ("--set", "max_depth=0"), "with max_depth=0 there is nowhere to look"),
        ("empty.csv", ("--set", "max_depth=0"), "with max_depth=0 there is nowhere to look"),
    ):
        code, printed, said = train(regions, *words)
        assert (code, printed) == (2, ""), said
        assert message in " ".join(said.split())
    for method in ("fcn", "mil"):
        given = [
            "train",
            "--data",
            data,
            "--out",
            tmp_path / "run",
            "--method",
            method,
            "--regions",
            data / "empty.csv",
        ]
        code, printed, said = run_program(capsys, monkeypatch, *given)
        assert (code, printed) == (2, "")
        assert f"method '{method}' has no policy" in " ".join(said.split())
    assert not (tmp_path / "run").exists()
    code, _, said = train("boxes.csv")
    assert code == 0, said
    assert "hints for 3 of 8 training images" in said


# End to end.

OPTIONS = ["base_resolution=16", "channels=1", "widths=[8,16]", "max_depth=1", "c_t=2.5", "guide=0.5", "samples=1"]
TRAINING = ["epochs=15", "batch_size=16", "lr=0.01", "validate_every=100", "jitter=0", "explore=0", "lambda_f=0.1"]


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with a small bright spot, plain or chequered: the glance shows where it is, but not which."""
    folder = tmp_path_factory.mktemp("spots")
    rows, boxes = [["path", "label", "split"]], [["path", "left", "top", "right", "bottom"]]
    for number in range(96):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 120, (32, 32), np.uint8)
        x, y = (2 * int(place) for place in random.integers(0, 15, 2))
        chequered = np.where(np.indices((4, 4)).sum(0) % 2, 255, 155)
        pixels[y : y + 4, x : x + 4] = chequered if number % 2 else 205
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append([f"{number}.png", ("plain", "chequered")[number % 2], "train" if number < 64 else "val"])
        boxes.append([f"{number}.png", *map(str, (x, y, x + 4, y + 4))])
    for name, table in (("data.csv", rows), ("boxes.csv", boxes)):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file).writerows(table)
    return folder


def sureness(model: TopDown, dataset: Dataset, hints: Hints) -> tuple[float, float]:
    """Mean probability, on validation images, of cells that their boxes ask for, and of the others."""
    images = OpenImages(dataset.classes, model.encoder.base_resolution, channels=1)
    examples = dataset.split("val")
    pyramids, _ = images.open_all([example.path for example in examples])
    with torch.inference_mode():
        trace = model.look([p for p in pyramids if p is not None], Settings("all", depth=1))
    boxes = [[hint.region for hint in hints.boxes[example.path]] for example in examples]
    asked = asked_for(trace.cell_region, trace.image[trace.parent], boxes)
    images.close()
    return float(trace.probability[asked].mean()), float(trace.probability[~asked].mean())


def test_a_policy_learns_where_spots_are_from_hints(spots: Path, tmp_path: Path) -> None:
    dataset = load_dataset(spots / "data.csv")
    hints = load_hints(spots / "boxes.csv", dataset)
    card, config = plan_training(dataset, assignments=[*OPTIONS, *TRAINING])
    reports: list[EpochReport] = []
    trainer = Trainer(dataset, card, config, tmp_path / "run", device="cpu", hints=hints, on_epoch=reports.append)
    before = sureness(trainer.model, dataset, hints)
    assert abs(before[0] - before[1]) < 0.1
    loaded = load_model(trainer.run())
    assert isinstance(loaded.model, TopDown)
    after = sureness(loaded.model, dataset, hints)
    assert after[0] > 0.8
    assert after[1] < 0.2
    assert reports[-1].metrics["hint_loss"] < 0.5 * reports[0].metrics["hint_loss"]
    with pytest.raises(ConfigError, match="other options or images"):
        Trainer(dataset, card, config, tmp_path / "run", device="cpu").run(resume=True)


def test_a_label_is_asked_of_cells_that_show_a_hint_and_of_all_where_there_is_none() -> None:
    """The term of single vectors (``lambda_v``) is the cross entropy of just those cells."""
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=2, c_t=4.0, samples=1, lambda_v=1.0), SmallEncoder(), 2)
    (hinted, box), (bare, _) = spotted(0), spotted(1)
    views, labels = [view_of(hinted, box), view_of(bare)], torch.tensor([1, 0])

    def loss(share: float) -> tuple[torch.Tensor, Any]:
        rule = rule_of(model, 2, lambda_v=share, lambda_g=0.0)
        value, _, trace = rule(model, views, labels, torch.Generator().manual_seed(5))
        return value, trace

    (with_term, trace), (without, _) = loss(1.0), loss(0.0)
    expected = []
    for fixation in np.flatnonzero(trace.depth > 0).tolist():
        x, y, side, _ = trace.region[fixation].tolist()
        left, top = max(x, box.x), max(y, box.y)
        held = max(0, min(x + side, box.right) - left) * max(0, min(y + side, box.bottom) - top)
        centred = x <= box.x + box.width / 2 < x + side and y <= box.y + box.height / 2 < y + side
        if trace.image[fixation] == 1 or centred or held >= 0.5 * min(side, box.width) * min(side, box.height):
            logits = model.classify(trace.vector[fixation])
            expected.append(functional.cross_entropy(logits, labels[trace.image[fixation]]))
    assert 0 < sum(trace.image[trace.depth > 0] == 0) > len(expected) - sum(trace.image[trace.depth > 0] == 1) > 0
    torch.testing.assert_close(with_term - without, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)
