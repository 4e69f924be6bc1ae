"""The comparison of encoders: as many parameters each, and a page that says what was measured and no more."""

import pytest
import torch

from benchmarks.encoders_arms import ARMS, Arm
from benchmarks.encoders_mnist import DigitRun
from benchmarks.encoders_report import markdown
from benchmarks.encoders_tasks import Job, look, size_of
from benchmarks.mnist_images import Digits
from benchmarks.scenes_arms import BASE, DEEPEST, TOPDOWN
from pyrtrav.config import make_config, parse_assignments
from pyrtrav.encoders import build_encoder
from pyrtrav.methods.topdown import TopDown, TopDownConfig


@pytest.mark.parametrize("base", [32, 64])
def test_encoders_have_about_as_many_parameters(base: int) -> None:
    paper = sum(weight.numel() for weight in build_encoder("imagenet-m1").parameters())
    for arm in ARMS.values():
        options = arm.small if base == 32 else arm.large
        if options is None or arm.encoder == "imagenet-m1":
            continue
        encoder = build_encoder(arm.encoder, base_resolution=base, **parse_assignments(options))
        assert sum(weight.numel() for weight in encoder.parameters()) == pytest.approx(paper, rel=0.02)


@pytest.mark.parametrize("arm", [arm for arm in ARMS.values() if arm.large is not None], ids=lambda arm: arm.encoder)
def test_encoders_for_the_scenes_fit_their_traversal(arm: Arm) -> None:
    encoder = build_encoder(arm.encoder, base_resolution=BASE, **parse_assignments(arm.large or ()))
    config = make_config(TopDownConfig, parse_assignments((*TOPDOWN, *arm.method)))
    assert TopDown(config, encoder, 4).max_depth == DEEPEST


def test_arms_of_a_tree_differ_in_context_alone() -> None:
    tree, parent = ARMS["multigrid-tree"], ARMS["multigrid-parent"]
    assert (tree.encoder, tree.small, tree.large) == (parent.encoder, parent.small, parent.large)
    assert parse_assignments(parent.method) == {**parse_assignments(tree.method), "context": "parent"}


def test_digits_train_and_the_page_says_what_they_gave() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = torch.randint(0, 256, (64, 28, 28), generator=generator, dtype=torch.uint8)
    digits = Digits(shown, torch.randint(0, 10, (64,), generator=generator), torch.zeros(1, 1, dtype=torch.uint8))
    job = Job("mnist", "residual", 0, 1, 1e-3, 32)
    run = DigitRun(job, (digits, digits), "cpu")
    before = [weight.detach().clone() for weight in run.model.parameters()]
    metrics = run.epoch(0)
    assert metrics["loss"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, run.model.parameters(), strict=True))
    images = run.images(digits, torch.arange(4), generator)
    found = look(run.model, [(images, digits.labels[:4])] * 2, 0, draws=2)
    assert len(found["right"]) == 4
    assert sum(found["right"]) == 8 * found["accuracy"]
    assert 0 <= found["accuracy"] <= 1
    patch = size_of(run.model)["patch_macs"]
    assert found["macs"] > (1 + found["cells"]) * patch > found["cells"] * patch

    record = {**vars(job), **found, **size_of(run.model), "seconds": run.seconds}
    record |= {"command": "the command", "date": "2026-01-02T03:04:05+00:00", "machine": "a machine"}
    page = markdown([record])
    assert f"| residual | 1 of 32 | 0.001 | 0 | {found['accuracy']:.3f} |  | {found['cells']:.1f} |" in page
    assert "`the command`, 2026-01-02, a machine" in page
    assert page.count("Not measured yet.") == 2


def test_a_batchs_own_statistics_judge_and_leave_the_model_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = torch.randint(0, 256, (8, 28, 28), generator=generator, dtype=torch.uint8)
    digits = Digits(shown, torch.arange(8), torch.zeros(1, 1, dtype=torch.uint8))
    run = DigitRun(Job("mnist", "multigrid-batch", 0, 1, 1e-3, 8), (digits, digits), "cpu")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    images = run.images(digits, torch.arange(8), generator)
    seen = []
    hook = run.model.encoder.register_forward_hook(lambda _, patches, encoding: seen.append((patches[0], encoding)))
    for by_batches in (True, False):
        look(run.model, [(images, digits.labels)], 0, draws=1, by_batches=by_batches)
        assert not any(module.training for module in run.model.modules())
    hook.remove()
    own, running = seen[0], seen[-1]
    with torch.no_grad():
        assert torch.equal(run.model.encoder.train()(own[0]).vector, own[1].vector)
        assert torch.equal(run.model.encoder.eval()(running[0]).vector, running[1].vector)
        assert not torch.equal(run.model.encoder(own[0]).vector, own[1].vector)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def row(arm: str, right: list[int], seed: int = 0, lr: float = 1e-3) -> dict[str, object]:
    """A line of the results: each image was looked at twice."""
    cost = {"cells": 1.0, "macs": 1.0, "patch_macs": 1.0, "parameters": 1, "encoder_parameters": 1, "seconds": 1.0}
    where = {"command": "x", "date": "2026-01-02T03:04:05+00:00", "machine": "y"}
    found = {"right": right, "draws": 2, "accuracy": sum(right) / (2 * len(right))}
    return {**vars(Job("mnist", arm, seed, 1, lr, 9)), **cost, **where, **found}


def test_encoders_are_compared_with_the_default_one_of_the_same_seed() -> None:
    page = markdown([row("residual", [0, 1, 2, 1]), row("paper", [1, 1, 2, 2]), row("multires", [2, 2, 2, 2], seed=1)])
    assert "| paper | 1 of 9 | 0.001 | 0 | 0.750 | +25.0 ± 12.5 points | 1.0 |" in page
    assert "| residual | 1 of 9 | 0.001 | 0 | 0.500 |  | 1.0 |" in page
    assert "| multires | 1 of 9 | 0.001 | 1 | 1.000 |  | 1.0 |" in page


def test_what_the_parents_patch_brings_is_counted_image_by_image() -> None:
    page = markdown([row("multigrid-tree", [0, 1, 2, 1]), row("multigrid-parent", [1, 1, 2, 2])])
    # Two of four images gain a half: a mean of 25 points, and half of their deviation of 25.
    assert "the parent's patch brings +25.0 ± 12.5 points (standard error over images)." in page


def test_runs_of_the_same_rate_are_compared_where_there_are_some() -> None:
    trees = [row("multigrid-tree", [2, 2, 2, 2], lr=2e-3), row("multigrid-tree", [0, 1, 2, 1])]
    page = markdown([*trees, row("multigrid-parent", [1, 1, 2, 2])])
    assert "the parent's patch brings +25.0 ± 12.5 points" in page
    assert "the parent's patch brings" not in markdown([trees[1], row("multigrid-parent", [1, 1, 2, 2], lr=2e-3)])


def test_what_running_statistics_cost_is_said_where_it_was_measured() -> None:
    rows = [row("residual", [2, 2]), row("multigrid-batch", [1, 2]) | {"by_batches": 0.9}]
    rows[1]["name"] = "a-run"
    assert "in place of running ones: a-run 0.900." in markdown(rows)
    assert "running ones" not in markdown(rows[:1])
