"""The multi-glimpse network: its table, its gradients, and its chain of glimpses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.mgnet_toy import ToyBackbone
from pyrtrav.errors import ConfigError
from pyrtrav.methods.mgnet import Fusion, GlimpseLoss, Mgnet, MgnetConfig
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings
from tests.small import SmallEncoder

FACTS = Path(os.environ.get("PYRTRAV_DATA") or "../shared/data").parent / "facts" / "multi_glimpse.json"


def stack(count: int, side: int, *, dtype: torch.dtype = torch.float32) -> ImageStack:
    generator = torch.Generator().manual_seed(0)
    # Smooth, so that finite differences mean something.
    coarse = torch.rand(count, 1, 5, 5, generator=generator, dtype=dtype) * 255
    return ImageStack(torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 255))


@pytest.mark.parametrize("glimpses", [1, 2, 3, 4, 5])
def test_multiply_accumulates_are_those_of_table_4(glimpses: int) -> None:
    if not FACTS.exists():
        pytest.skip(f"{FACTS} is not there")
    printed = json.loads(FACTS.read_text())["toy"]["table4"]["translated_gaussian"][str(glimpses)][0]
    model = Mgnet(MgnetConfig(glimpses=glimpses), ToyBackbone(), 10).eval()
    with torch.no_grad():
        trace = model.look(stack(2, 112), Settings("all", depth=glimpses - 1))
    assert model.macs(trace) == pytest.approx([printed * 1e6] * 2, rel=0.0005)


def test_the_feedforward_net_of_table_4() -> None:
    """One glimpse of every pixel."""
    model = Mgnet(MgnetConfig(glimpses=1), ToyBackbone(112), 10).eval()
    with torch.no_grad():
        trace = model.look(stack(1, 112), Settings("all", depth=0))
    assert model.macs(trace) == pytest.approx([67.95e6], rel=0.0005)


def test_fusion_is_attention_written_out() -> None:
    torch.manual_seed(0)
    fusion, seen = Fusion(7), torch.randn(2, 3, 7)
    for image in range(2):
        rows = seen[image]
        query, key, value = (rows @ m.weight.T for m in (fusion.query, fusion.key, fusion.value))
        mixed = torch.zeros(7)
        exponents = torch.stack([query[2] @ key[j] / 7**0.5 for j in range(3)])
        for j, weight in enumerate(torch.exp(exponents) / torch.exp(exponents).sum()):
            mixed = mixed + weight * value[j]
        out = mixed @ fusion.out.weight.T
        normal = (out - out.mean()) / (out.var(unbiased=False) + fusion.norm.eps).sqrt()
        expected = torch.relu(normal * fusion.norm.weight + fusion.norm.bias)
        torch.testing.assert_close(fusion(seen)[image], expected)


def loss_of(model: Mgnet, images: ImageStack) -> Tensor:
    labels = torch.tensor([0, 1, 2])
    return GlimpseLoss(model.config)(model, images, labels, torch.Generator())[0]


def double_model(**options: float) -> Mgnet:
    torch.manual_seed(1)
    return Mgnet(MgnetConfig(by_scale=False, **options), SmallEncoder(), 3).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("small_regions", [0.0, 0.5])
def test_where_to_look_is_learned_by_the_gradient_of_what_is_seen(
    small_regions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite differences, through the sampling of every later glimpse."""
    monkeypatch.setattr("pyrtrav.methods.mgnet.WELL", 10.0)
    model = double_model(glimpses=3, gradient_scale=1.0, small_regions=small_regions)
    images = stack(3, 16, dtype=torch.float64)
    # The positional encoding has no gradient, by the paper; here it has no effect either, which differences would show.
    for part in (model.fusion.query, model.fusion.key, model.fusion.value):
        part.weight.data[:, -3:] = 0
    loss_of(model, images).backward()
    for weight in (model.locate.weight, model.locate.bias, model.fusion.key.weight):
        assert weight.grad is not None
        flat, found = weight.data.view(-1), weight.grad.view(-1)
        for index in range(0, len(flat), max(1, len(flat) // 6)):
            values = []
            for change in (1e-6, -1e-6):
                before = flat[index].item()
                flat[index] += change
                values.append(loss_of(model, images).item())
                flat[index] = before
            assert found[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-3, abs=2e-7)


def test_the_gradient_of_where_to_look_is_scaled() -> None:
    gradients = []
    for factor in (1.0, 0.02):
        model = double_model(glimpses=2, gradient_scale=factor)
        loss_of(model, stack(3, 16, dtype=torch.float64)).backward()
        assert model.locate.weight.grad is not None
        gradients.append(model.locate.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], 0.02 * gradients[0])


def test_glimpses_form_a_chain_inside_the_root() -> None:
    torch.manual_seed(0)
    model = Mgnet(MgnetConfig(glimpses=5), SmallEncoder(), 3).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    pixels = [np.random.default_rng(i).integers(0, 256, (150 + 9 * i, 200, 1), np.uint8) for i in range(3)]
    images = [ArrayPyramid(p, channels=1) for p in pixels]
    with torch.inference_mode():
        trace = model.look(images, Settings("all", depth=4))
        for number in range(3):
            root, nodes = trace.roots[number], model.nodes(trace, number)
            assert [node.parents for node in nodes] == [(), (0,), (1,), (2,), (3,)]
            assert nodes[0].region == root
            for node in nodes[1:]:
                assert 0.2 * root.width - 1e-3 <= node.region.width <= 0.5 * root.width + 1e-3
                assert root.x - 1e-3 <= node.region.x
                assert node.region.right <= root.right + 1e-3
        assert len({node.region for node in nodes}) == 5
        # Fewer glimpses, by depth or by budget, are the first ones, and say what was said after them.
        for fewer in (Settings("all", depth=2), Settings("budget", depth=4, budget=3)):
            part = model.look(images, fewer)
            np.testing.assert_allclose(part.region, trace.until(2).region, atol=1e-3)
            torch.testing.assert_close(model.believe(part, 2), model.believe(trace, 2), atol=1e-4, rtol=1e-3)


def test_positions_are_those_that_were_chosen() -> None:
    """What attention is told of where a glimpse lies, computed from its region, is what the region was made of."""
    model = Mgnet(MgnetConfig(), SmallEncoder(), 3).eval()
    image = ArrayPyramid(np.zeros((100, 60, 1), np.uint8), channels=1)
    with torch.inference_mode():
        trace = model.look([image], Settings("all", depth=0))
        chosen = torch.tensor([[0.3, -0.6, 0.5]])
        region = model.region_of(trace, np.zeros(1, np.int64), chosen).numpy()
        zeros = np.zeros(1, np.int64)
        trace.add_fixations(zeros, zeros + 1, 1, zeros, zeros, region, torch.zeros(1, 5))
        torch.testing.assert_close(model.positions(trace), torch.tensor([[1.0, 0.0, 0.0], [0.3, -0.6, 0.5]]))


def test_options_that_cannot_be_right() -> None:
    with pytest.raises(ConfigError, match="above most_scale"):
        MgnetConfig(least_scale=0.6)
    with pytest.raises(ConfigError):
        MgnetConfig(glimpses=0)
