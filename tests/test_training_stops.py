"""What stops a run, when, and what it leaves: nothing is written before it can begin, nothing good is written over."""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.geometry import Region
from pyrtrav.model_file import load_model
from pyrtrav.training.data import load_dataset
from pyrtrav.training.hints import Hint, Hints
from pyrtrav.training.log import EpochReport
from pyrtrav.training.progress import Progress
from pyrtrav.training.setup import plan_training
from pyrtrav.training.step import Member, Stepper, StepReport
from pyrtrav.training.trainer import Trainer
from tests.toy_images import SMALL, make_images

FCN = ["halvings=1", "base_resolution=16", "widths=[4,8]", "batch_size=2", "epochs=3", "validate_every=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def make_trainer(folder: Path, out: Path, *more: str, method: str = "topdown", **other: Any) -> Trainer:
    dataset = load_dataset(folder)
    options = FCN if method == "fcn" else [*SMALL, "validate_every=1"]
    card, config = plan_training(dataset, method=method, assignments=[*options, *more])
    return Trainer(dataset, card, config, out, device="cpu", **other)


def finite(weights: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for name, value in weights.items() if name.startswith("model."))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("fcn", ["lr=1e10"], "the loss is not finite since epoch"),
        ("fcn", ["lr=1e10", "checkpoint_steps=1"], "the loss is not finite since epoch"),
        # One step an epoch: the logged loss is that of the weights before it.
        ("topdown", ["lambda_t=1e39", "batch_size=8"], "weights are not finite since epoch 1 of stage 'depth 1'"),
        ("topdown", ["lambda_t=1e39", "checkpoint_steps=1"], "weights are not finite since epoch 1 of stage 'depth 1'"),
    ],
)
def test_a_run_that_diverges_stops(folder: Path, tmp_path: Path, method: str, options: list[str], message: str) -> None:
    """Where it does, so that neither the log nor the checkpoint ever holds what is not finite."""
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=rf"{message}.*Lower lr \(now "):
        make_trainer(folder, out, *options, method=method).run()
    assert "NaN" not in (out / "log.jsonl").read_text()
    assert finite(load_file(out / "checkpoint.safetensors"))
    assert not (out / "summary.json").exists()
    # And there it stops again.
    with pytest.raises(ConfigError, match=message):
        make_trainer(folder, out, *options, method=method).run(resume=True)


def test_a_run_goes_on_after_images_were_mended(folder: Path, tmp_path: Path) -> None:
    """With checkpoints within the epoch, and as if they had never been spoiled: no step was taken without them."""
    whole = load_model(make_trainer(folder, tmp_path / "whole", "epochs=1").run()).model.state_dict()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoiled = copy / "train" / "dark" / "0.png"
    good = spoiled.read_bytes()
    spoiled.write_bytes(good[:-600])
    saving = ["checkpoint_steps=1", "epochs=1"]
    with pytest.raises(DatasetError, match="mend them and go on with --resume, or remove them and train anew"):
        make_trainer(copy, tmp_path / "run", *saving).run()
    with pytest.raises(DatasetError, match="1 of 8 training images"):
        make_trainer(copy, tmp_path / "run", *saving).run(resume=True)
    spoiled.write_bytes(good)
    mended = load_model(make_trainer(copy, tmp_path / "run", *saving).run(resume=True)).model.state_dict()
    assert all(torch.equal(mended[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["hed=0.1", "channels=1"], "hed changes stains"),
        (["tensorboard=true"], "extra `tensorboard`"),
        (["keep=auroc"], "keep=auroc needs validation images of two classes"),
        (["epochs=[1,2]"], "epochs has 2 values for 1 stages"),
        (["class_weights=[1,2,3]"], "3 numbers for 2 classes"),
    ],
)
def test_options_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "val" / "light")
    with pytest.raises(ConfigError, match=message):
        make_trainer(copy, tmp_path / "run", *options).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "kept", ["model.safetensors", "summary.json", "learning_curve.png", "log.jsonl", "tensorboard"]
)
def test_no_file_of_another_run_is_written_over(folder: Path, tmp_path: Path, kept: str) -> None:
    out = tmp_path / "run"
    make_trainer(folder, out, "epochs=1", "tensorboard=true").run()
    for path in out.iterdir():
        if path.name != kept:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    before = (out / kept).stat().st_mtime_ns
    with pytest.raises(ConfigError, match=rf"run: holds another run's {kept}; .* another --out"):
        make_trainer(folder, out, "epochs=1").run()
    assert ((out / kept).stat().st_mtime_ns, [path.name for path in out.iterdir()]) == (before, [kept])


def test_a_validation_without_the_metric_is_not_waited_for() -> None:
    at = Progress()
    assert at.judge(0.5, lower_is_better=False)
    for value, better, waited in ((math.nan, False, 0), (0.4, False, 1), (math.nan, False, 1), (0.6, True, 0)):
        assert (at.judge(value, lower_is_better=False), at.waited) == (better, waited)


def test_unreadable_validation_images_end_no_stage(folder: Path, tmp_path: Path) -> None:
    """Of them there is no loss to judge by: the run takes all its epochs, and ends with its last weights."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.glob("val/*/*.png"):
        path.write_bytes(path.read_bytes()[:-600])
    reports: list[EpochReport] = []
    trainer = make_trainer(copy, tmp_path / "run", "keep=loss", "patience=1", on_epoch=reports.append)
    trainer.run()
    assert [report.epoch for report in reports] == [1, 2, 3]
    assert trainer.at.ended[0].kept == 3


def test_a_metric_is_a_mean_over_the_images_that_have_it(folder: Path, tmp_path: Path) -> None:
    """Of four steps one has a hinted image: its loss is the epoch's, also after a checkpoint within the epoch."""
    dataset = load_dataset(folder)
    examples = dataset.split("train")
    hints = Hints({examples[2].path: [Hint(Region(4, 4, 10, 10), "")]})
    trainer = make_trainer(folder, tmp_path / "run", hints=hints)
    stepper = Stepper(
        trainer.model, trainer.stages[0], trainer.optimizer, trainer.images, trainer.config, trainer.hints
    )
    at, losses, hint_losses = Progress(), [], []
    for number in range(4):
        report = stepper.step([Member(examples[number], (0, number))], 0.5)
        losses.append(report.totals["loss"])
        hint_losses.extend([report.totals["hint_loss"]] if "hint_loss" in report.totals else [])
        at.count(report.totals, report.counts, report.failed)
        at = Progress.from_json(at.to_json())
    assert len(hint_losses) == 1
    assert at.means()["hint_loss"] == pytest.approx(hint_losses[0])
    assert at.means()["loss"] == pytest.approx(sum(losses) / 4)


def test_parts_and_processes_add_up_metric_by_metric() -> None:
    one = StepReport({"loss": 6.0}, {"loss": 3}, 3, {"a": "gone"})
    other = StepReport({"loss": 1.0, "hint_loss": 4.0}, {"loss": 2, "hint_loss": 2}, 2)
    both = one + other
    assert both.totals == {"loss": 7.0, "hint_loss": 4.0}
    assert both.counts == {"loss": 5, "hint_loss": 2}
    assert (both.seen, both.failed) == (5, {"a": "gone"})
