"""Normalisation against torch's own layers, and what batch statistics may not do."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pyrtrav.encoders import MultigridEncoder, MultiresEncoder, count_macs
from pyrtrav.encoders.normalisation import BatchNorm, ChannelNorm, PatchNorm
from pyrtrav.errors import ConfigError
from pyrtrav.methods.fcn import Fcn, FcnConfig


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_channel_norm_is_layer_norm_of_each_position() -> None:
    norm = ChannelNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(2, 5, 3, 4)
    expected = functional.layer_norm(features.permute(0, 2, 3, 1), (5,), norm.weight, norm.bias)
    torch.testing.assert_close(norm(features), expected.permute(0, 3, 1, 2))


def test_patch_norm_is_layer_norm_of_a_patch_alone() -> None:
    norm = PatchNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = 3 * torch.randn(2, 5, 3, 4) + 1
    alike = functional.layer_norm(features, (5, 3, 4))
    torch.testing.assert_close(norm(features), alike * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))
    torch.testing.assert_close(norm(features[1:]), norm(features)[1:])


@pytest.mark.parametrize("encoder", [MultigridEncoder, MultiresEncoder])
def test_strips_of_an_image_are_not_normalised_as_if_they_were_the_image(encoder: type) -> None:
    Fcn(FcnConfig(), encoder(norm="channel"), 2)
    for norm in ("patch", "batch"):
        with pytest.raises(ConfigError, match="a feature sees the whole image; choose norm=channel"):
            Fcn(FcnConfig(), encoder(norm=norm), 2)


def test_batch_norm_is_torch_s_for_each_scale() -> None:
    ours, theirs = BatchNorm(3, scales=2), [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    for step in range(3):
        for scale, layer in enumerate(theirs):
            features = (scale + 1) * torch.randn(4, 3, 5, 5) + step
            torch.testing.assert_close(ours(features, scale), layer(features))
    ours.eval()
    for scale, layer in enumerate(theirs):
        features = torch.randn(1, 3, 2, 2)
        torch.testing.assert_close(ours(features, scale), layer.eval()(features))


@pytest.mark.parametrize("count", [0, 1])
def test_a_value_alone_has_no_variance_and_is_normalised_as_at_test_time(count: int) -> None:
    norm = BatchNorm(3)
    nn.init.constant_(norm.mean, 2.0)
    features = torch.randn(count, 3, 1, 1)
    trained = norm(features)
    assert torch.equal(trained, norm.eval()(features))
    assert (norm.mean == 2).all()


def test_statistics_that_change_before_the_backward_pass_change_no_gradient() -> None:
    alone, batch = torch.randn(1, 3, 1, 1), torch.randn(4, 3, 5, 5)
    norm = BatchNorm(3).train()
    norm(alone).square().sum().backward()
    expected = norm.weight.grad.clone()
    norm.zero_grad()
    later = norm(alone).square().sum()
    norm(batch + 7)
    later.backward()
    assert torch.equal(norm.weight.grad, expected)


@pytest.mark.parametrize("encoder", [MultigridEncoder, MultiresEncoder])
def test_counting_costs_changes_no_statistics(encoder: type) -> None:
    model = encoder(norm="batch").train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    count_macs(model, torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model(torch.rand(2, 3, 64, 64))
    assert not all(torch.equal(value, before[name]) for name, value in model.named_buffers())
