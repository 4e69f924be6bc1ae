"""Proximal policy optimization: every function against values by hand, and together on a task with a known answer."""

import pytest
import torch
from scipy.stats import norm

from pyrtrav.ppo import clipped_surrogate, discounted_returns, gaussian_log_prob, normalised, ppo_objective

DOUBLE = torch.float64


def test_the_log_density_is_that_of_two_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    action, mean = torch.rand(2, 3, 4, 2, generator=generator, dtype=DOUBLE)
    expected = norm.logpdf(action.numpy(), mean.numpy(), 0.1).sum(2)
    torch.testing.assert_close(gaussian_log_prob(action, mean, 0.1), torch.from_numpy(expected))


def test_returns_by_hand() -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5]])
    assert discounted_returns(reward, 0.5).tolist() == [[3.0, 4.0, 4.0], [-0.375, -0.75, 0.5]]
    assert discounted_returns(reward, 0.0).tolist() == reward.tolist()
    assert discounted_returns(reward, 1.0)[:, 0].tolist() == reward.sum(1).tolist()


def test_returns_are_normalised_over_images_and_steps() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 3.0]], dtype=DOUBLE)
    # Mean 3, variance (4 + 4 + 0 + 0) / 4 = 2.
    expected = torch.tensor([[-2.0, 2.0], [0.0, 0.0]], dtype=DOUBLE) / (2**0.5 + 1e-5)
    torch.testing.assert_close(normalised(values), expected)
    assert not normalised(torch.full((2, 3), 0.7)).abs().max() > 1e-2
    assert normalised(torch.zeros(0, 3)).shape == (0, 3)


CASES = [
    # ratio, advantage, L^CLIP with epsilon 0.2, its derivative by log pi
    (1.0, 2.0, 2.0, 2.0),
    (1.5, 2.0, 2.4, 0.0),
    (0.5, 2.0, 1.0, 1.0),
    (1.5, -2.0, -3.0, -3.0),
    (0.5, -2.0, -1.6, 0.0),
    (1.1, 2.0, 2.2, 2.2),
]


@pytest.mark.parametrize(("ratio", "advantage", "value", "slope"), CASES)
def test_the_clipped_objective_by_hand(ratio: float, advantage: float, value: float, slope: float) -> None:
    old = torch.tensor([[-1.3]], dtype=DOUBLE)
    log_prob = (old + torch.tensor(ratio, dtype=DOUBLE).log()).requires_grad_()
    found = clipped_surrogate(log_prob, old, torch.tensor([[advantage]], dtype=DOUBLE), 0.2)
    assert found.item() == pytest.approx(value)
    found.sum().backward()
    assert log_prob.grad is not None
    assert log_prob.grad.item() == pytest.approx(slope)


def test_what_is_maximised_by_hand() -> None:
    """The advantage is return less value, a constant to the policy; the critic learns from its squared error alone."""
    log_prob = torch.tensor([[-1.0, -2.0]], dtype=DOUBLE, requires_grad=True)
    value = torch.tensor([[0.5, 1.0]], dtype=DOUBLE, requires_grad=True)
    returns = torch.tensor([[2.0, 0.0]], dtype=DOUBLE)
    found = ppo_objective(log_prob, log_prob.detach(), value, returns, clip=0.2, value_weight=0.5)
    # The ratio is 1: 1.5 - 0.5 * 1.5^2, and -1 - 0.5 * 1^2.
    torch.testing.assert_close(found, torch.tensor([[0.375, -1.5]], dtype=DOUBLE))
    found.sum().backward()
    assert log_prob.grad is not None
    assert value.grad is not None
    assert log_prob.grad.tolist() == [[1.5, -1.0]]
    assert value.grad.tolist() == [[1.5, -1.0]]


@pytest.mark.parametrize("passes", [1, 4])
def test_a_policy_finds_the_best_place(passes: int) -> None:
    """Two steps, each rewarded by its nearness to a place of its own; the means must go there."""
    generator = torch.Generator().manual_seed(0)
    best = torch.tensor([[0.8, 0.3], [0.1, 0.6]])
    mean = torch.full((2, 2), 0.5, requires_grad=True)
    value = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([mean, value], lr=0.02)
    for _ in range(150):
        action = (mean + 0.1 * torch.randn(64, 2, 2, generator=generator)).detach()
        returns = normalised(discounted_returns(-(action - best).square().sum(2), 0.7))
        old = gaussian_log_prob(action, mean.expand(64, 2, 2), 0.1).detach()
        for _ in range(passes):
            log_prob = gaussian_log_prob(action, mean.expand(64, 2, 2), 0.1)
            found = ppo_objective(log_prob, old, value.expand(64, 2), returns, clip=0.2, value_weight=0.5)
            optimizer.zero_grad()
            (-found.mean()).backward()
            optimizer.step()
    torch.testing.assert_close(mean.detach(), best, atol=0.03, rtol=0)
