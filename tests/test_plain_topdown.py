"""The learning rule against a plain implementation of it that shares none of its machinery."""

import numpy as np
import pytest
import torch

from benchmarks.mnist_train import PAPER
from benchmarks.plain_topdown import Place, plain_step
from pyrtrav.encoders import build_encoder
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Floats, Ints
from pyrtrav.trace import Trace

SIDE = {0: 14, 1: 28, 2: 56}


def uniform(draw: int, depth: int, x: float, y: float, cell: int) -> float:
    """One number for every decision, however it is come by; x and y in pixels of the depth's level."""
    return float(np.random.default_rng([draw, depth, round(x), round(y), cell]).random())


def ours(trace: Trace, parents: Ints, cell: Ints) -> Floats:
    """Decisions hang on their places, for whoever asks."""
    scale = trace.region[parents, 2] / 14
    return np.array(
        [
            uniform(int(trace.image[p]), int(trace.depth[p]), trace.region[p, 0] / s, trace.region[p, 1] / s, int(c))
            for p, s, c in zip(parents, scale, cell, strict=True)
        ]
    )


def theirs(depth: int, places: list[Place], probabilities: torch.Tensor) -> torch.Tensor:
    draws = [[uniform(i, depth, x, y, cell) for cell in range(9)] for i, x, y in places]
    return (torch.tensor(draws, dtype=probabilities.dtype) < probabilities).to(probabilities.dtype)


@pytest.mark.parametrize("pair", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_rule_is_the_plain_one(pair: int, depth: int) -> None:
    torch.manual_seed(pair)
    # The paper's rule, with weights that let every term be seen.
    options = PAPER | {"lambda_f": 0.7, "lambda_t": 0.2, "lambda_r": 3.0}
    config = TopDownConfig(max_depth=depth, c_t=3.0 * depth, **options)
    model = TopDown(config, build_encoder(f"mnist-m{pair}"), 10).double()
    with torch.no_grad():
        model.location.conv.bias.uniform_(-2, 0.5)
    images, labels = torch.rand(5, 1, SIDE[depth], SIDE[depth], dtype=torch.float64), torch.arange(5)
    rule = LearningRule(config, depth)
    rule.baseline.fill_(-1.7)
    loss, metrics, _ = rule(model, ImageStack(images * 255), labels, ours)
    plain = plain_step(model, f"mnist-m{pair}", images, labels, -1.7, theirs)
    assert metrics["cells"] == pytest.approx(plain.cells)
    assert metrics["cells"] > depth
    assert float(loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=1e-9)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()))
    expected = torch.autograd.grad(plain.loss, list(parameters.values()))
    for name, a, b in zip(parameters, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
