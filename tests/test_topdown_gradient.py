"""The learning rule against the truth: enumeration of all attention masks, and formulas by hand."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.policy_gradient import (
    cost_penalty,
    diversity_penalty,
    log_likelihood,
    mean_entropy,
    next_baseline,
    probability_for,
    reinforce,
)
from pyrtrav.selection import Floats, Ints, Settings
from pyrtrav.trace import Trace
from tests.small import SmallEncoder, random_image

CLASSES, LABEL = 3, 1

Run = dict[tuple[int, ...], frozenset[int]]
"""Which cells each fixation attends, by the path of cells that leads to it (or its lattice place, shared)."""


def make_model(*, cells: int, shared: bool, closed: tuple[int, ...] = ()) -> TopDown:
    """A model with three processing levels; cells in ``closed`` are never attended."""
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=2, cells=cells, share_cells=shared, c_t=2.0, gradual=False)
    model = TopDown(config, SmallEncoder(), CLASSES).double()
    with torch.no_grad():
        # Probabilities far from one half, so that no symmetry hides an error.
        model.location.conv.weight.mul_(3)
        model.location.conv.bias.uniform_(-1, 1)
        model.location.conv.weight[list(closed)] = 0
        model.location.conv.bias[list(closed)] = -80
    return model


def subsets(items: tuple[int, ...]) -> list[frozenset[int]]:
    return [frozenset(c) for size in range(len(items) + 1) for c in itertools.combinations(items, size)]


def all_runs(open_cells: tuple[int, ...]) -> Iterator[tuple[frozenset[int], dict[int, frozenset[int]]]]:
    """Every run of three levels: what the glance attends, and what each attended cell attends."""
    for attended in subsets(open_cells):
        order = sorted(attended)
        for below in itertools.product(subsets(open_cells), repeat=len(order)):
            yield attended, dict(zip(order, below, strict=True))


def dictate(runs: list[tuple[frozenset[int], dict[int, frozenset[int]]]], cells: int) -> Callable[..., Floats]:
    """Draws that make image i of the batch follow run i."""
    glance = np.zeros((len(runs), cells**2), bool)
    below = np.zeros((len(runs), cells**2, cells**2), bool)
    for run, (attended, children) in enumerate(runs):
        glance[run, list(attended)] = True
        for own, places in children.items():
            below[run, own, list(places)] = True

    def draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
        image = trace.image[parents]
        own = trace.row[parents] * cells + trace.column[parents]
        on = np.where(trace.depth[parents] == 0, glance[image, cell], below[image, np.minimum(own, cells**2 - 1), cell])
        return np.where(on, -1.0, 2.0)

    return draws


@pytest.mark.parametrize(
    ("cells", "shared", "closed", "baseline"),
    [
        # 2 x 2 cells: every one of the 17^4 runs.
        (2, False, (), -0.7),
        (2, True, (3,), 0.0),
        (2, True, (3,), -0.7),
        # 3 x 3 cells of which a row is open: neighbours share cells at depth 2.
        (3, True, (0, 1, 2, 6, 7, 8), 0.0),
        (3, True, (0, 1, 2, 6, 7, 8), -0.7),
        (3, False, (0, 1, 2, 6, 7, 8), -0.7),
    ],
)
def test_mean_gradient_over_all_masks_is_that_of_the_lower_bound(
    cells: int, shared: bool, closed: tuple[int, ...], baseline: float
) -> None:
    """Rule (1) with lambda_f = 1, averaged over all masks, is the gradient of F (9), whatever the constant baseline."""
    open_cells = tuple(c for c in range(cells * cells) if c not in closed)
    runs = list(all_runs(open_cells))
    model, image = make_model(cells=cells, shared=shared, closed=closed), random_image(3)
    settings = Settings(select="sample", depth=2, share_cells=shared, encode_batch=1 << 20)
    trace = model.look([image] * len(runs), settings, dictate(runs, cells))
    log_prob = trace.decision_log_prob(2)
    reward = log_likelihood(model.believe(trace, 2), torch.full((len(runs),), LABEL))
    probability = log_prob.exp()
    assert float(probability.detach().sum()) == pytest.approx(1.0, abs=1e-12)

    names, parameters = zip(*model.named_parameters(), strict=True)
    truth = torch.autograd.grad((probability * reward).sum(), parameters, retain_graph=True)
    weight = probability.detach() * len(runs)
    rule = (weight * reward).mean() + reinforce(weight * log_prob, reward, baseline)
    estimate = torch.autograd.grad(rule, parameters)
    for name, wanted, got in zip(names, truth, estimate, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    location = [wanted for name, wanted in zip(names, truth, strict=True) if "policy" in name]
    assert all(float(wanted.abs().max()) > 1e-4 for wanted in location)


def test_sharing_merges_cells_of_two_parents() -> None:
    """The middle row of a 3 x 3 grid: its neighbours at depth 1 have cells in common at depth 2."""
    runs = [(frozenset({3, 4}), {3: frozenset({3, 4, 5}), 4: frozenset({3, 4, 5})})]
    for shared, fixations in ((True, 1 + 2 + 5), (False, 1 + 2 + 6)):
        model = make_model(cells=3, shared=shared)
        settings = Settings(select="sample", depth=2, share_cells=shared)
        trace = model.look([random_image(1)], settings, dictate(runs, 3))
        assert len(trace.image) == fixations
        assert int(trace.on.sum()) == 2 + 6


def sampled_trace(shared: bool, seed: int = 0) -> tuple[TopDown, Trace]:
    model = make_model(cells=3, shared=shared)
    images = [random_image(1), random_image(2, 16, 9)]
    settings = Settings(select="sample", depth=2, share_cells=shared)
    return model, model.look(images, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shared", [True, False])
def test_expected_cells_follow_their_formula(shared: bool) -> None:
    """p_t of (14), or the expected number of distinct cells, from plain loops over the trace."""
    _, trace = sampled_trace(shared)
    for depth in (1, 2):
        got = trace.expected_cells(depth, shared=shared)
        for image in range(2):
            none: dict[tuple[int, ...], float] = {}
            total = 0.0
            for edge in range(len(trace.parent)):
                parent = int(trace.parent[edge])
                if trace.image[parent] != image or trace.depth[parent] >= depth:
                    continue
                p = float(trace.probability[edge])
                total += p
                key = (int(trace.depth[parent]), int(trace.cell_column[edge]), int(trace.cell_row[edge]))
                none[key] = none.get(key, 1.0) * (1 - p)
            wanted = sum(1 - q for q in none.values()) if shared else total
            assert float(got[image].detach()) == pytest.approx(wanted, abs=1e-9)


def test_log_probability_counts_each_decision_of_distinct_fixations_once() -> None:
    _, trace = sampled_trace(shared=True, seed=4)
    got = trace.decision_log_prob(2)
    for image in range(2):
        wanted = sum(
            math.log(p if on else 1 - p)
            for p, on, parent in zip(trace.probability, trace.on, trace.parent, strict=True)
            if trace.image[parent] == image
        )
        assert float(got[image].detach()) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_the_regularisers_match_their_formulas(shared: bool) -> None:
    """(2) and (3) with the masks fixed: finite differences on a weight of the location module."""
    model, trace = sampled_trace(shared)
    runs = trace.on.copy()
    weight = model.location.conv.bias

    def value() -> torch.Tensor:
        fixed = iter(runs.tolist())

        def draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
            return np.array([-1.0 if next(fixed) else 2.0 for _ in parents])

        images = [random_image(1), random_image(2, 16, 9)]
        again = model.look(images, Settings(select="sample", depth=2, share_cells=shared), draws)
        cells = again.expected_cells(2, shared=shared)
        return cost_penalty(cells, 4.0) + diversity_penalty(again.mean_by_cell(2, 9), 0.3)

    (gradient,) = torch.autograd.grad(value(), weight)
    for cell in (0, 4, 8):
        step = 1e-6
        with torch.no_grad():
            weight[cell] += step
            high = float(value().detach())
            weight[cell] -= 2 * step
            low = float(value().detach())
            weight[cell] += step
        assert float(gradient[cell]) == pytest.approx((high - low) / (2 * step), rel=1e-5, abs=1e-9)


def test_no_gradient_leaves_the_location_module() -> None:
    """The regularisers and REINFORCE train the location module alone."""
    model, trace = sampled_trace(shared=True)
    objective = trace.decision_log_prob(2).sum() + trace.expected_cells(2, shared=True).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(objective, parameters, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        touched = gradient is not None and float(gradient.abs().max()) > 0
        assert touched == ("policy" in name), name


def test_baseline_starts_at_the_first_mean_and_follows_it() -> None:
    """(12) by hand, and b of a step is the one before it."""
    reward = torch.tensor([-1.0, -3.0])
    assert next_baseline(None, reward) == -2.0
    assert next_baseline(-1.0, reward) == pytest.approx(0.9 * -1.0 + 0.1 * -2.0)
    model = make_model(cells=3, shared=True).float()
    rule = LearningRule(model.config, 2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1])
    images = [random_image(1), random_image(2)]
    _, first, _ = rule(model, images, labels, generator)
    assert float(rule.baseline[2]) == pytest.approx(-first["loss"], rel=1e-6)
    _, second, _ = rule(model, images, labels, generator)
    assert float(rule.baseline[2]) == pytest.approx(-0.9 * first["loss"] - 0.1 * second["loss"], rel=1e-6)


def place_draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
    """Draws that depend on the place alone, so that runs of any depth agree as far as they go."""
    place = trace.fixation_place()[parents] * 16 + cell
    return np.array([np.random.default_rng(number).random() for number in place.tolist()])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("weights", [1.0, (0.5, 2.0, 1.0), (0.0, 0.0, 1.0)])
def test_multi_level_learning_is_the_weighted_sum_of_the_levels(
    shared: bool, weights: float | tuple[float, ...]
) -> None:
    """(6), with rule (4) written out for a run of every depth, each with its own b, c_t and c_r."""
    options = {"share_cells": shared, "c_t": (2.0, 7.0), "explore": 0.0, "lambda_v": 0.0, "baseline": "average"}
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(multi_level=True, level_weights=weights, **options), SmallEncoder(), CLASSES).double()
    images, labels = [random_image(1), random_image(2)], torch.tensor([0, 1])
    rule = LearningRule(model.config, 2)
    before = (-2.0, -1.0, -0.5)
    rule.baseline.copy_(torch.tensor(before))
    loss, _, _ = rule(model, images, labels, place_draws)
    expected = torch.zeros((), dtype=torch.float64)
    each = weights if isinstance(weights, tuple) else (weights,) * 3
    for depth, weight in enumerate(each):
        settings = Settings("sample", depth=depth, share_cells=shared)
        trace = model.look([image for image in images for _ in range(2)], settings, place_draws)
        reward = log_likelihood(model.believe(trace, depth), labels.repeat_interleave(2))
        level = reward.mean()
        if depth:
            p = torch.sigmoid(trace.logit)
            log_prob = torch.where(torch.from_numpy(trace.on), p.log(), (1 - p).log())
            of_image = torch.from_numpy(trace.image[trace.parent])
            for image in range(4):
                level = level + (reward[image].detach() - before[depth]) * log_prob[of_image == image].sum() / 4
            cells = trace.expected_cells(depth, shared=shared).mean()
            even = probability_for(options["c_t"][depth - 1], 9, depth)
            by_cell = torch.stack([p[torch.from_numpy(trace.cell == cell)].mean() for cell in range(9)])
            level = level - 0.1 * 0.5 * (cells - options["c_t"][depth - 1]) ** 2
            level = level - 0.01 * 0.5 * ((by_cell - even) ** 2).mean()
        expected = expected + weight * level
    assert float(loss.detach()) == pytest.approx(-float(expected.detach()), rel=1e-9)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(-expected, parameters, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    for depth, weight in enumerate(each):
        moved = float(rule.baseline[depth]) != before[depth]
        assert moved == (depth > 0 and weight > 0)


def test_entropy_of_decisions() -> None:
    """By its definition, in float64, and without overflow where a policy is sure."""
    logit = torch.linspace(-8, 8, 33, dtype=torch.float64)
    p = torch.sigmoid(logit)
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert float(mean_entropy(logit)) == pytest.approx(float(expected), rel=1e-12)
    assert float(mean_entropy(torch.tensor([-300.0, 300.0]))) == 0.0
    assert float(mean_entropy(torch.zeros(3))) == pytest.approx(math.log(2))
    assert torch.autograd.gradcheck(mean_entropy, logit.requires_grad_())


@pytest.mark.parametrize(("c_t", "depth"), [(2.0, 1), (6.0, 2), (12.0, 2), (40.0, 3)])
def test_even_probability_solves_its_equation(c_t: float, depth: int) -> None:
    p = probability_for(c_t, 9, depth)
    assert sum((9 * p) ** z for z in range(1, depth + 1)) == pytest.approx(c_t)


def test_means_by_cell_leave_out_cells_without_image() -> None:
    """A band of 16 x 2 pixels in its square of 16: outer cells at depth 2 hold nothing of it."""
    model = make_model(cells=3, shared=True)
    trace = model.look([random_image(5, 16, 2)], Settings(select="all", depth=2))
    bounds = trace.roots[0].y + 7, trace.roots[0].y + 9
    for edge in range(len(trace.parent)):
        top = trace.cell_region[edge, 1]
        assert top < bounds[1]
        assert top + trace.cell_region[edge, 3] > bounds[0]
    by_cell = trace.mean_by_cell(2, 9)
    for cell in range(9):
        own = trace.probability[trace.cell == cell]
        assert float(by_cell[cell].detach()) == pytest.approx(float(own.mean()) if len(own) else 0.0)
