"""Glance and focus: what each stage trains, and that all of them survive a crash."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrtrav.encoders import build_encoder
from pyrtrav.methods.gfnet import METHOD, Gfnet, GfnetConfig, LookLoss, PolicyLoss
from pyrtrav.methods.gfnet.learning import gains
from pyrtrav.model_file import load_model
from pyrtrav.ppo import discounted_returns, normalised
from pyrtrav.pyramid import open_pyramid
from pyrtrav.selection import Settings
from pyrtrav.training.data import load_dataset
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.test_gfnet import IMAGES, small_model
from tests.toy_images import make_images

LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def learned(model: Gfnet, objective: LookLoss | PolicyLoss) -> set[str]:
    """The parts that a loss gives a gradient to."""
    model.zero_grad(set_to_none=True)
    objective(model, IMAGES, LABELS, torch.Generator().manual_seed(0))[0].backward()
    return {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}


def test_each_stage_trains_its_parts() -> None:
    config = GfnetConfig(looks=3, hidden=8, policy_hidden=8)
    stages = {stage.name: stage for stage in METHOD.stages(config)}
    assert list(stages) == ["glance", "random patches", "policy", "fine-tuning"]
    model, all_but_policy = small_model(config), {"encoder", "local", "classify", "judge_glance", "judge_focus"}
    found = {name: learned(model, stage.objective) for name, stage in stages.items()}  # type: ignore[arg-type]
    assert found["glance"] == {"encoder", "classify", "judge_glance", "judge_focus"} - {"judge_focus"} | (
        found["glance"] & {"judge_focus"}
    )
    assert found["random patches"] == found["fine-tuning"] == all_but_policy
    assert found["policy"] == {"propose"}


def test_statistics_stand_still_while_the_policy_learns() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("multigrid", base_resolution=32, channels=1, norm="batch")
    config = GfnetConfig(looks=2, hidden=8, policy_hidden=8)
    model = Gfnet(config, encoder, 3).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    PolicyLoss(config)(model, IMAGES, LABELS, torch.Generator().manual_seed(0))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    LookLoss(config, 1, "random")(model, IMAGES, LABELS, torch.Generator().manual_seed(0))
    assert any(not torch.equal(before[name], value) for name, value in model.named_buffers())


def test_the_loss_of_looks_written_out() -> None:
    model = small_model(GfnetConfig(looks=3, hidden=8, policy_hidden=8, encoder_weight=0.7))
    objective = LookLoss(model.config, 2, "random")
    with torch.no_grad():
        loss, _, trace = objective(model, IMAGES, LABELS, torch.Generator().manual_seed(0))
    written = 0.0
    for number, label in enumerate(LABELS.tolist()):
        vectors = trace.vector[torch.from_numpy(trace.fixations_of(number))]
        for look in range(3):
            with torch.no_grad():
                believed = model.believe(trace, look)[number]
                own = (model.judge_focus if look else model.judge_glance)(vectors[look])
            for weight, logits in ((1.0, believed), (0.7, own)):
                written -= weight * float(torch.log_softmax(logits, 0)[label]) / 9
    assert float(loss) == pytest.approx(written, rel=1e-5)


def test_a_reward_is_the_gain_of_the_true_class() -> None:
    chance = torch.tensor([[[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]])
    torch.testing.assert_close(gains(chance.log(), torch.tensor([0])), torch.tensor([[0.5, -0.1]]))
    torch.testing.assert_close(gains(chance.log(), torch.tensor([1])), torch.tensor([[-0.5, 0.1]]))


def test_the_first_pass_has_a_ratio_of_one_and_the_policy_gradient() -> None:
    """Value and gradient of the loss against log-densities by scipy and a loop over images and steps."""
    model = small_model()
    config, generator = model.config, torch.Generator().manual_seed(0)
    objective = PolicyLoss(replace(config, passes=2))
    loss, metrics, trace = objective(model, IMAGES, LABELS, generator)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.propose.named_parameters() if weight.grad is not None}
    with torch.no_grad():
        again, rollout = model.follow(IMAGES, Settings("sample", depth=3), torch.Generator().manual_seed(0))
        np.testing.assert_array_equal(again.region, trace.region)
        chance = torch.stack([torch.softmax(model.believe(again, depth), 1)[range(3), LABELS] for depth in range(4)], 1)
    rewards = chance.diff(dim=1)
    assert metrics["reward"] == pytest.approx(float(rewards.sum(1).mean()), rel=1e-4)
    returns = normalised(discounted_returns(rewards, 0.7))
    model.zero_grad(set_to_none=True)
    total, value_of_loss = torch.zeros(()), 0.0
    for image in range(3):
        state = None
        for step in range(3):
            mean, value, state = model.propose(rollout.maps[step][image : image + 1], state)
            distance = (rollout.actions[step][image] - mean[0]) / config.deviation
            advantage = returns[image, step] - value[0].detach()
            total = (
                total - (advantage * -distance.square().sum() / 2 - 0.5 * (value[0] - returns[image, step]) ** 2) / 9
            )
            value_of_loss -= float(advantage - 0.5 * advantage**2) / 9
    total.backward()
    assert float(loss.detach()) == pytest.approx(value_of_loss, rel=1e-4)
    for name, weight in model.propose.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-5)
    # Nothing moved: the second pass begins where the first was.
    assert objective.again is not None
    torch.testing.assert_close(objective.again(), loss)


def test_images_that_fail_are_left_out(folder: Path, tmp_path: Path) -> None:
    model = small_model()
    path = tmp_path / "torn.png"
    path.write_bytes((folder / "train" / "dark" / "0.png").read_bytes()[:-600])
    with open_pyramid(path, channels=1) as torn:
        for objective in (PolicyLoss(model.config), LookLoss(model.config, 3, "random")):
            loss, _, trace = objective(model, [torn, *IMAGES[:2]], LABELS, torch.Generator().manual_seed(0))
            assert [error is None for error in trace.errors] == [False, True, True]
            assert torch.isfinite(loss)
            loss, _, trace = objective(model, [torn], LABELS[:1], torch.Generator().manual_seed(0))
            assert not trace.alive.any()
            assert float(loss.detach()) == 0


# As a whole.

OPTIONS = ["base_resolution=16", "widths=[4,8]", "looks=3", "hidden=8", "policy_hidden=8", "batch_size=4", "passes=2"]


def make_trainer(folder: Path, out: Path, *more: str) -> Trainer:
    options = [*OPTIONS, "epochs=[1,1,2,1]", "lr=[0.002,0.002,0.0003,0.001]", "accumulate=2", *more]
    dataset = load_dataset(folder)
    card, config = plan_training(dataset, method="gfnet", assignments=options)
    return Trainer(dataset, card, config, out, device="cpu")


def test_all_stages_are_trained_and_resumed_one_by_one(folder: Path, tmp_path: Path) -> None:
    """A run that dies in every epoch of every stage goes on to the weights of one that does not."""
    whole = load_model(make_trainer(folder, tmp_path / "whole").run()).model.state_dict()
    died: list[tuple[str, int]] = []

    class Died(Exception):
        pass

    def die(report: EpochReport) -> None:
        if (report.stage, report.epoch) not in died:
            died.append((report.stage, report.epoch))
            raise Died

    while not (tmp_path / "run" / "model.safetensors").exists():
        trainer = make_trainer(folder, tmp_path / "run")
        trainer.on_epoch = die
        with suppress(Died):
            trainer.run(resume=bool(died))
    assert died == [("glance", 1), ("random patches", 1), ("policy", 1), ("policy", 2), ("fine-tuning", 1)]
    loaded = load_model(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in whole.items())
    assert loaded.card.selection == {"select": "all"}
