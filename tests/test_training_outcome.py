"""What a run leaves: a summary that says how to do it again, a picture, and events for TensorBoard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pyrtrav import __version__
from pyrtrav.training.data import load_dataset
from pyrtrav.training.learning_curve import COLOURS, draw_learning_curve
from pyrtrav.training.log import EpochReport, RunLog
from pyrtrav.training.metrics import classification_metrics
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.toy_images import SMALL, make_images

OPTIONS = [*SMALL, "max_depth=2", "c_t=6", "gradual=true", "validate_every=1", "keep=loss", "epochs=[2,3]", "lr=0.05"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def make_trainer(folder: Path, out: Path, *more: str) -> Trainer:
    dataset = load_dataset(folder)
    card, config = plan_training(dataset, assignments=[*OPTIONS, *more])
    return Trainer(dataset, card, config, out, device="cpu", command="pyrtrav train --data images")


def test_the_summary_says_what_was_done_and_reached(folder: Path, tmp_path: Path) -> None:
    make_trainer(folder, tmp_path / "run").run()
    summary: dict[str, Any] = json.loads((tmp_path / "run" / "summary.json").read_text())
    log = RunLog(tmp_path / "run").read()
    assert summary["command"] == "pyrtrav train --data images"
    assert (summary["seed"], summary["classes"], summary["versions"]["pyrtrav"]) == (0, ["dark", "light"], __version__)
    assert summary["images"] == {"train": 8, "val": 4, "test": 0}
    assert (summary["training"]["lr"], summary["method"]["options"]["c_t"]) == (0.05, 6.0)
    assert summary["encoder"]["options"]["widths"] == [4, 8]
    losses = [line["metrics"]["val_loss"] for line in log]
    assert [stage["kept"] for stage in summary["stages"]] == [1 + np.argmin(losses[:2]), 1 + np.argmin(losses[2:])]
    assert summary["best_epoch"] == summary["stages"][1]["kept"]
    assert summary["metrics"] == log[1 + summary["best_epoch"]]["metrics"]
    assert {"val_auroc", "val_f1", "val_balanced_accuracy", "val_calibration_error"} <= summary["metrics"].keys()
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in log), abs=0.1)
    with Image.open(tmp_path / "run" / "learning_curve.png") as picture:
        assert picture.width == 760


def test_the_curve_shows_the_figures() -> None:
    """A loss that falls in a straight line from 2 to 1 crosses the panel where it should."""
    reports = [{"stage": "a", "metrics": {"loss": 2 - i / 10}} for i in range(11)]
    pixels = np.asarray(draw_learning_curve(reports, []))
    drawn = (pixels == COLOURS["training"]).all(2)
    rows = [int(np.flatnonzero(drawn[44:, x]).mean()) + 44 for x in (90, 730)]
    # The scale goes from 0 at row 240 to 2 at row 44.
    expected = [240 - (2 - share) / 2 * 196 for share in ((90 - 84) / 652, (730 - 84) / 652)]
    assert rows == pytest.approx(expected, abs=2)


def test_tensorboard_has_every_epoch_once(folder: Path, tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def die(report: EpochReport) -> None:
        if report.stage == "depth 2" and report.epoch == 2:
            raise Died

    trainer = make_trainer(folder, tmp_path / "run", "tensorboard=true")
    trainer.on_epoch = die
    with pytest.raises(Died):
        trainer.run()
    make_trainer(folder, tmp_path / "run", "tensorboard=true").run(resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    log = RunLog(tmp_path / "run").read()
    for tag, name in (("loss/train", "loss"), ("loss/val", "val_loss"), ("auroc/val", "val_auroc")):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert [step for step, _ in found] == [1, 2, 3, 4, 5]
        assert [value for _, value in found] == pytest.approx([line["metrics"][name] for line in log])


def test_metrics_by_hand() -> None:
    """Three images of class 0, one of class 1; the second and the last are mistaken."""
    believed = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.7, 0.3]])
    found = classification_metrics(believed, np.array([0, 0, 0, 1]))
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    # Of the pairs (class 0, class 1) two of three are in the right order.
    assert found["auroc"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((2 * 2 / (2 * 2 + 1 + 1) + 0) / 2)
    # Each in a bin of its own: |right - sure|.
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)
