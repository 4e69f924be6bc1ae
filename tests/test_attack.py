"""Attacks: gradients of every method against finite differences, bounds, and the ordinary path's answers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyrtrav.encoders.base import Window, init_xavier
from pyrtrav.errors import ConfigError
from pyrtrav.methods import METHODS, Model
from pyrtrav.methods.mgnet import Mgnet
from pyrtrav.robustness.attack import Attack, as_bytes, attacked, gradients, odds_against, surprise
from pyrtrav.robustness.judge import logits_of
from pyrtrav.selection import Settings
from pyrtrav.tensor_image import InMemory, TensorImage
from tests.small import SmallEncoder

OPTIONS: dict[str, dict[str, Any]] = {
    "topdown": {"max_depth": 2},
    "mgnet": {"glimpses": 3, "gradient_scale": 0.01},
    "gfnet": {"looks": 3, "hidden": 6, "policy_hidden": 6},
    "fcn": {"halvings": 2},
    "mil": {"depth": 2, "attention_size": 4},
}
EVERYTHING = Settings(select="all", depth=2)


class LocalEncoder(SmallEncoder):
    """Says how far a feature sees, so that it slides over whole images too."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = (Window(2, 2),)


def make(method: str) -> Model:
    torch.manual_seed(0)
    model = METHODS[method].build(METHODS[method].Config(**OPTIONS[method]), LocalEncoder(), 3)
    init_xavier(model)
    if isinstance(model, Mgnet):
        # Where a glimpse lies has no gradient in what fusion is told of it: so that all of the gradient can be
        # checked, it is told nothing.
        for layer in (model.fusion.query, model.fusion.key, model.fusion.value):
            layer.weight.data[:, -3:] = 0
        model.locate.weight.data *= 5
    return model.double().eval()


def pictures() -> list[Tensor]:
    random = np.random.default_rng(0)
    shapes = (16, 16), (19, 13), (32, 24)
    return [torch.from_numpy(random.integers(20, 236, (1, *shape)).astype(float)) for shape in shapes]


LABELS = torch.tensor([0, 2, 1])


def believer(model: Model, *, rounded: bool) -> Callable[[list[Tensor]], Tensor]:
    def believe(values: list[Tensor]) -> Tensor:
        return logits_of(model, [TensorImage(value, rounded=rounded) for value in values], EVERYTHING)

    return believe


@pytest.mark.parametrize("method", OPTIONS)
def test_gradients_are_finite_differences(method: str) -> None:
    model, own = make(method), pictures()
    believe = believer(model, rounded=False)
    random = torch.Generator().manual_seed(1)
    with model.true_gradients():
        found = gradients(believe, own, LABELS, surprise)
        for number, slope in enumerate(found):
            assert float(slope.abs().max()) > 0
            for _ in range(2):
                way = torch.randn(slope.shape, generator=random, dtype=torch.float64)
                ends = []
                for sign in (1, -1):
                    moved = [*own]
                    moved[number] = own[number] + sign * 1e-4 * way
                    with torch.no_grad():
                        ends.append(float(cross_entropy(believe(moved), LABELS, reduction="sum")))
                assert float((slope * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-9)


def test_training_scales_what_mgnet_learns_of_where_to_look_and_an_attack_does_not() -> None:
    model, own = make("mgnet"), pictures()
    believe = believer(model, rounded=False)
    scaled = gradients(believe, own, LABELS, surprise)
    with model.true_gradients():
        whole = gradients(believe, own, LABELS, surprise)
    assert not torch.allclose(scaled[0], whole[0], rtol=1e-3)
    torch.testing.assert_close(gradients(believe, own, LABELS, surprise)[0], scaled[0])


@pytest.mark.parametrize("method", OPTIONS)
def test_what_an_attack_sees_is_what_the_ordinary_path_sees(method: str) -> None:
    model, own = make(method), pictures()
    kept = [InMemory(picture.permute(1, 2, 0).numpy().astype(np.uint8), path="x", background=(255,)) for picture in own]
    with torch.inference_mode():
        expected = logits_of(model, kept, EVERYTHING)
        found = believer(model, rounded=True)(own)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # glimpses of files are of single precision
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-paper"])
def test_an_attack_raises_the_loss_within_its_bound(method: str, name: str) -> None:
    model, own = make(method), pictures()
    own[0][0, :2] = 0
    own[0][0, 2:4] = 255
    attack = Attack(name, eps=(6.0,), step=2.0, steps=(1,) if name == "fgsm" else (1, 4))
    believe = believer(model, rounded=not attack.normalised)
    std = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    found = dict(attacked(believe, own, LABELS, attack, 6.0, std))
    assert tuple(found) == attack.steps
    after = found[max(attack.steps)]
    bound = 3.0 if attack.normalised else 6.0
    for picture, changed in zip(own, after, strict=True):
        assert 0 < float((changed - picture).abs().max()) <= bound + 1e-9
    outside = any(float(changed.min()) < 0 or float(changed.max()) > 255 for changed in after)
    assert outside == attack.normalised
    with torch.no_grad():
        before, now = (cross_entropy(believe(each), LABELS, reduction="none") for each in (own, after))
    assert (now > before).all()


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd-paper"])
def test_eps_0_changes_nothing(name: str) -> None:
    own = pictures()
    attack = Attack(name, steps=(1,))
    (_, found), *_ = attacked(believer(make("fcn"), rounded=False), own, LABELS, attack, 0.0, torch.ones(1, 1, 1))
    for picture, changed in zip(own, found, strict=True):
        assert torch.equal(picture, changed)


def test_against_a_linear_model_pgd_goes_to_the_corner_of_its_box() -> None:
    """By hand: with two classes the loss rises along the sign of the weights' difference, everywhere."""
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 48, generator=random, dtype=torch.float64)
    picture = torch.randint(0, 256, (3, 4, 4), generator=random).double()

    def believe(values: list[Tensor]) -> Tensor:
        return torch.stack([weights @ value.reshape(-1) / 1000 for value in values])

    attack = Attack("pgd", step=1.5, steps=(2, 3))
    found = dict(attacked(believe, [picture], torch.tensor([0]), attack, 4.0))
    way = (weights[1] - weights[0]).sign().view(3, 4, 4)
    torch.testing.assert_close(found[2][0], (picture + 3.0 * way).clamp(0, 255))
    torch.testing.assert_close(found[3][0], (picture + 4.0 * way).clamp(0, 255))
    once = dict(attacked(believe, [picture], torch.tensor([0]), Attack("fgsm", steps=(1,)), 4.0))
    torch.testing.assert_close(once[1][0], found[3][0])


def test_the_odds_rise_where_cross_entropy_does_and_where_it_is_rounded_to_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0])
    chance = torch.softmax(logits, 1)[[0, 1], labels]
    torch.testing.assert_close(odds_against(logits, labels), torch.log((1 - chance) / chance))
    odds, entropy = (
        torch.autograd.grad(loss(logits, labels).sum(), logits, retain_graph=True)[0]
        for loss in (odds_against, surprise)
    )
    torch.testing.assert_close(entropy, (1 - chance)[:, None] * odds)
    sure = torch.tensor([[300.0, 0.0]], requires_grad=True)
    assert torch.autograd.grad(surprise(sure, labels[1:]).sum(), sure)[0].abs().max() == 0
    assert torch.autograd.grad(odds_against(sure, labels[1:]).sum(), sure)[0].tolist() == [[-1, 1]]


@pytest.mark.parametrize("eps", [0.0, 0.4, 2.0, 2.5])
def test_written_as_bytes_the_bound_holds(eps: float) -> None:
    picture = torch.arange(256.0).view(1, 16, 16)
    changed = (picture + eps * torch.tensor([1.0, -1.0]).repeat(128).view(1, 16, 16)).clamp(0, 255)
    stored = as_bytes(changed, picture, eps)
    assert stored.dtype == torch.uint8
    assert float((stored.float() - picture).abs().max()) == int(eps)


def test_impossible_attacks_are_refused() -> None:
    make_attack: Callable[..., Attack] = partial(replace, Attack())
    for wrong, message in (
        ({"name": "pdg"}, "did you mean 'pgd'"),
        ({"eps": (-1.0,)}, "from 0 to 255"),
        ({"eps": ()}, "from 0 to 255"),
        ({"step": 0.0}, "above 0"),
        ({"steps": (0,)}, "1 step or more"),
        ({"name": "fgsm", "steps": (2,)}, "fgsm takes one step"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_attack(**wrong)
