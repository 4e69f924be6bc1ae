"""Training promises: repeatable, resumable, lazy, and it says what went wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.geometry import Region
from pyrtrav.model_file import load_model
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.training.augment import View
from pyrtrav.training.calibrate import calibrate, threshold_for
from pyrtrav.training.data import Dataset, load_dataset
from pyrtrav.training.evaluate import evaluate
from pyrtrav.training.images import OpenImages
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training, sort_options
from pyrtrav.training.trainer import Trainer
from tests.toy_images import SMALL, make_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def make_trainer(folder: Path, out: Path, *more: str, seed: int = 0) -> Trainer:
    dataset = load_dataset(folder, seed=seed)
    card, config = plan_training(dataset, assignments=[*SMALL, *more])
    return Trainer(dataset, card, config, out, seed=seed, device="cpu")


def test_a_model_file_is_all_that_is_needed(folder: Path, tmp_path: Path) -> None:
    path = make_trainer(folder, tmp_path / "run").run()
    loaded = load_model(path)
    assert loaded.card.classes == ("dark", "light")
    assert loaded.card.encoder.options["widths"] == [4, 8]
    assert loaded.card.selection["select"] in ("threshold", "budget")
    assert {"accuracy", "mean_cells"} <= loaded.card.training["validation"].keys()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]


def test_the_same_seed_gives_the_same_model(folder: Path, tmp_path: Path) -> None:
    weights = [load_model(make_trainer(folder, tmp_path / name).run()).model.state_dict() for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = load_model(make_trainer(folder, tmp_path / "c", seed=1).run()).model.state_dict()
    assert any(not torch.equal(weights[0][name], other[name]) for name in other)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_that_died_goes_on_as_if_it_had_not(folder: Path, tmp_path: Path, stop_after: int) -> None:
    whole = load_model(make_trainer(folder, tmp_path / "whole").run()).model.state_dict()

    class Died(Exception):
        pass

    def die(report: EpochReport) -> None:
        if report.epoch == stop_after + 1:
            raise Died

    trainer = make_trainer(folder, tmp_path / "run")
    trainer.on_epoch = die
    with pytest.raises(Died):
        trainer.run()
    with pytest.raises(ConfigError, match="--resume"):
        make_trainer(folder, tmp_path / "run").run()
    with pytest.raises(ConfigError, match="other options"):
        make_trainer(folder, tmp_path / "run", "lr=0.5").run(resume=True)
    resumed = load_model(make_trainer(folder, tmp_path / "run").run(resume=True)).model.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_resuming_nothing_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        make_trainer(folder, tmp_path / "run").run(resume=True)


def spoil(folder: Path, copy: Path, count: int) -> Path:
    """A copy with some training images cut short, which is seen only when they are read."""
    shutil.copytree(folder, copy)
    for path in sorted((copy / "train" / "dark").iterdir())[:count]:
        path.write_bytes(path.read_bytes()[:-600])
    return copy


def test_unreadable_images_stop_a_run_above_five_percent(folder: Path, tmp_path: Path) -> None:
    spoiled = spoil(folder, tmp_path / "spoiled", 1)
    with pytest.raises(DatasetError, match="1 of 8 training images cannot be read"):
        make_trainer(spoiled, tmp_path / "run").run()


def test_few_unreadable_images_are_named_in_a_warning(folder: Path, tmp_path: Path) -> None:
    spoiled = spoil(folder, tmp_path / "spoiled", 1)
    for i in range(12):
        for label in ("dark", "light"):
            source = folder / "train" / label / "1.png"
            pixels = np.asarray(Image.open(source)).astype(int) + i
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(spoiled / "train" / label / f"more{i}.png")
    reports: list[EpochReport] = []
    trainer = make_trainer(spoiled, tmp_path / "run")
    trainer.on_epoch = reports.append
    trainer.run()
    assert all("0.png" in (report.warning or "") for report in reports)
    with pytest.raises(DatasetError, match="strict"):
        make_trainer(spoiled, tmp_path / "strict", "strict=true").run()


def dataset_and_model(folder: Path) -> tuple[Dataset, torch.nn.Module, OpenImages]:
    dataset = load_dataset(folder)
    trainer = make_trainer(folder, folder / "unused", "max_depth=2", "c_t=6")
    return dataset, trainer.model, trainer.images


def test_calibration_attends_as_much_as_sampling(folder: Path) -> None:
    dataset, model, images = dataset_and_model(folder)
    with torch.no_grad():
        # A policy with an opinion: an untrained one gives all cells nearly one probability.
        model.location.conv.weight.mul_(10)
    examples = dataset.split("val")
    found = calibrate(model, examples, images, Settings(select="sample", depth=2))
    assert found.stored.mean_cells == pytest.approx(found.sampled_cells, rel=0.15)
    settings_ = Settings(**{**found.selection, "depth": 2})
    assert evaluate(model, examples, images, settings_).mean_cells == found.stored.mean_cells


def test_calibration_falls_back_to_a_budget(folder: Path) -> None:
    """A policy that gives every cell the same probability has no threshold between all and nothing."""
    dataset, model, images = dataset_and_model(folder)
    with torch.no_grad():
        model.location.conv.weight.zero_()
    found = calibrate(model, dataset.split("val"), images, Settings(select="sample", depth=2))
    assert found.selection == {"select": "budget", "budget": round(found.sampled_cells) + 1}
    assert found.stored.mean_cells == pytest.approx(found.sampled_cells, rel=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30, unique=True), st.integers(0, 30))
def test_thresholds_leave_what_is_wanted_above(values: list[float], wanted: int) -> None:
    tau = threshold_for([np.array(values)], wanted)
    distinct = np.diff(np.sort(values)).min(initial=1.0) > 1e-9
    if distinct:
        assert (np.array(values) > tau).sum() == pytest.approx(min(wanted, len(values)), abs=int(0.0 in values))


@given(
    turns=st.integers(0, 3),
    mirror=st.booleans(),
    column=st.integers(0, 12),
    row=st.integers(0, 12),
    width=st.integers(1, 8),
    height=st.integers(1, 8),
)
@settings(deadline=None)
def test_a_view_is_the_turned_image(turns: int, mirror: bool, column: int, row: int, width: int, height: int) -> None:
    """Reading a region of a view equals slicing the turned square."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    image = ArrayPyramid(pixels)
    square = image.read(Region(0, -4, 20, 20), 20).pixels
    turned = np.rot90(square, turns)
    if mirror:
        turned = turned[:, ::-1]
    view = View(image, 16, turns, mirror, None)
    region = Region(view.frame.x + column, view.frame.y + row, width, height)
    got = view.read_many([region], (width, height)).pixels[0]
    assert (got == turned[row : row + height, column : column + width]).all()


def test_options_find_their_home() -> None:
    found = sort_options("topdown", "residual", {"c_t": 3, "lr": 0.1, "widths": [8, 8], "training": {"epochs": 2}})
    assert found == ({"c_t": 3}, {"lr": 0.1, "epochs": 2}, {"widths": [8, 8]})
    with pytest.raises(ConfigError, match="did you mean 'lambda_f'"):
        sort_options("topdown", "residual", {"lamda_f": 1})
    with pytest.raises(ConfigError, match="unknown section"):
        sort_options("topdown", "residual", {"model.c_t": 1})


def test_the_paper_s_models_train_too(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(folder)
    for method, encoder, options in [
        ("topdown", "mnist-m3", ["max_depth=1", "c_t=2", "share_cells=false"]),
        ("fcn", "mnist-m2", ["halvings=1"]),
        ("fcn", "residual", ["halvings=1", "base_resolution=16", "widths=[4,8]"]),
    ]:
        card, config = plan_training(dataset, method=method, encoder=encoder, assignments=[*options, "epochs=1"])
        path = Trainer(dataset, replace(card, purpose="test"), config, tmp_path / f"{method}-{encoder}").run()
        assert load_model(path).card.method == method
