"""Which weights a run ends with, when it stops, and what counts how much."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pyrtrav.errors import ConfigError
from pyrtrav.methods.criterion import Criterion
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.model_file import load_model
from pyrtrav.training.balance import class_weights
from pyrtrav.training.data import load_dataset
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.small import SmallEncoder, random_image
from tests.toy_images import SMALL, make_images

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def make_trainer(folder: Path, out: Path, *more: str) -> Trainer:
    dataset = load_dataset(folder)
    # Steps too large to be good: the validation loss goes up and down.
    card, config = plan_training(
        dataset, assignments=[*SMALL, "validate_every=1", "epochs=6", "batch_size=2", "lr=0.05", *more]
    )
    return Trainer(dataset, card, config, out, device="cpu")


def run(trainer: Trainer) -> tuple[list[EpochReport], list[Weights], Weights]:
    """Every epoch's report and weights, and those of the model file."""
    reports: list[EpochReport] = []
    weights: list[Weights] = []

    def watch(report: EpochReport) -> None:
        reports.append(report)
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer.on_epoch = watch
    return reports, weights, load_model(trainer.run()).model.state_dict()


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("metric", "lower"), [("loss", True), ("accuracy", False)])
def test_the_best_weights_are_kept(folder: Path, tmp_path: Path, metric: str, lower: bool) -> None:
    reports, weights, kept = run(make_trainer(folder, tmp_path / "run", f"keep={metric}"))
    values = [report.metrics[f"val_{metric}"] for report in reports]
    best = int(np.argmin(values) if lower else np.argmax(values))
    assert best < len(values) - 1, "the last epoch is the best: this tests nothing"
    assert same(kept, weights[best])
    assert not same(kept, weights[-1])
    assert same(run(make_trainer(folder, tmp_path / "last"))[2], weights[-1])


def test_a_run_stops_when_it_has_waited_long_enough(folder: Path, tmp_path: Path) -> None:
    """And each stage waits anew, and hands its best weights on."""
    more = ["max_depth=2", "c_t=6", "gradual=true", "keep=loss", "patience=2", "epochs=9"]
    reports, weights, kept = run(make_trainer(folder, tmp_path / "run", *more))
    start = 0
    for _, group in itertools.groupby(reports, key=lambda report: report.stage):
        values = [report.metrics["val_loss"] for report in group]
        best = int(np.argmin(values))
        assert len(values) == min(best + 3, 9)
        last_best, start = start + best, start + len(values)
    assert len(reports) < 18
    assert same(kept, weights[last_best])


def test_the_best_weights_survive_a_crash(folder: Path, tmp_path: Path) -> None:
    class Died(Exception):
        pass

    def die(report: EpochReport) -> None:
        if report.epoch == crash:
            raise Died

    whole = run(make_trainer(folder, tmp_path / "whole", "keep=loss", "patience=3"))[2]
    for crash in (1, 3, 4):
        trainer = make_trainer(folder, tmp_path / f"run{crash}", "keep=loss", "patience=3")
        trainer.on_epoch = die
        with pytest.raises(Died):
            trainer.run()
        again = make_trainer(folder, tmp_path / f"run{crash}", "keep=loss", "patience=3")
        assert same(load_model(again.run(resume=True)).model.state_dict(), whole)


def test_options_are_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patience"):
        make_trainer(folder, tmp_path / "run", "patience=-1")
    with pytest.raises(ConfigError, match="keep"):
        make_trainer(folder, tmp_path / "run", "keep=acuracy")


def test_smoothing_and_weights_are_those_of_torch() -> None:
    logits, target = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 0, 3])
    weights = (0.5, 2.0, 1.0, 0.25)
    smooth = functional.cross_entropy(logits, target, label_smoothing=0.1, reduction="none")
    factors = torch.tensor(weights, dtype=torch.float64)
    weighted = functional.cross_entropy(logits, target, factors, reduction="none")
    torch.testing.assert_close(-Criterion(0.1)(logits, target), smooth)
    torch.testing.assert_close(-Criterion(0.0, weights)(logits, target), weighted)
    torch.testing.assert_close(-Criterion(0.1, weights)(logits, target), smooth * factors[target])


def test_rewards_are_the_plain_log_likelihood() -> None:
    """Smoothing and weights teach what to say, not where to look: the policy's gradient does not know them."""
    config = TopDownConfig(max_depth=1, c_t=3.0, samples=3)
    gradients = []
    for criterion in (Criterion(), Criterion(0.2, (3.0, 0.2, 1.0))):
        torch.manual_seed(0)
        model, rule = TopDown(config, SmallEncoder(), 3), LearningRule(config, 1)
        rule.criterion = criterion
        images = [random_image(0), random_image(1)]
        loss, metrics, _ = rule(model, images, torch.tensor([0, 1]), torch.Generator().manual_seed(0))
        loss.backward()
        assert model.location.conv.weight.grad is not None
        gradients.append((model.location.conv.weight.grad, model.classify.weight.grad, metrics["loss"]))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])
    assert gradients[0][2] == gradients[1][2]


def test_class_weights() -> None:
    """Balanced is n / (classes * count), as in scikit-learn; numbers are scaled to a mean of 1 over the images."""
    labels, names = [0] * 6 + [1] * 3 + [2], ["a", "b", "c"]
    assert class_weights("none", labels, names) is None
    assert class_weights("balanced", labels, names) == pytest.approx((10 / 18, 10 / 9, 10 / 3))
    given = class_weights((1.0, 2.0, 4.0), labels, names)
    assert given == pytest.approx((10 / 16, 20 / 16, 40 / 16))
    with pytest.raises(ConfigError, match="2 numbers for 3 classes: a, b, c"):
        class_weights((1.0, 2.0), labels, names)
    with pytest.raises(ConfigError, match="above 0"):
        class_weights((1.0, 2.0, 0.0), labels, names)
