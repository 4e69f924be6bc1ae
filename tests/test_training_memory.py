"""Accumulation, recomputation and precision change memory and rounding, not what is learned."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.running import Running
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.step import Member, Stepper
from pyrtrav.training.trainer import Trainer
from tests.small import random_image
from tests.toy_images import SMALL, make_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


FCN = ["halvings=1", "base_resolution=16", "widths=[4,8]", "batch_size=8"]
LINEAR = ["lambda_t=0", "lambda_r=0", "lambda_v=0", "baseline=leave_one_out", "samples=3", "batch_size=8"]


def gradients(folder: Path, out: Path, *more: str, method: str = "topdown") -> list[Tensor]:
    """What one step on all training images adds up to, before it is taken."""
    dataset = load_dataset(folder)
    small = FCN if method == "fcn" else SMALL
    card, config = plan_training(dataset, method=method, assignments=[*small, "turn=false", "clip=1e9", *more])
    trainer = Trainer(dataset, card, config, out, device="cpu")
    trainer.model.double()
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    stepper = Stepper(trainer.model, trainer.stages[0], trainer.optimizer, trainer.images, config)
    members = [Member(example, (0, i)) for i, example in enumerate(dataset.split("train"))]
    assert stepper.step(members, 1.0).seen == 8
    return [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("parts", [2, 3, 8, 9])
@pytest.mark.parametrize(("method", "options"), [("fcn", ["class_weights=[1,3]"]), ("topdown", LINEAR)])
def test_parts_add_up_to_the_batch(folder: Path, tmp_path: Path, parts: int, method: str, options: list[str]) -> None:
    """Where the objective is a mean over images: always for `fcn`, for (4) without (2) and (3)."""
    whole = gradients(folder, tmp_path, *options, method=method)
    # The eight images fill no batch of nine: its ninth part is empty.
    added = gradients(folder, tmp_path, *options, "batch_size=9", f"accumulate={parts}", method=method)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in whole)
    for one, other in zip(whole, added, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_policy_s_gradient_takes_nothing_from_the_others(folder: Path, tmp_path: Path) -> None:
    """However far the cells are from c_t: encoder and classifier learn as they would, within the norm of their own."""
    calm, wild = (gradients(folder, tmp_path, "lambda_v=0", "clip=0.5", f"lambda_t={t}") for t in (0, 1000))
    norms = [torch.stack([gradient.norm() for gradient in found]).norm().item() for found in (calm, wild)]
    different = [(a, b) for a, b in zip(calm, wild, strict=True) if not torch.allclose(a, b, rtol=1e-9, atol=1e-12)]
    assert [tuple(a.shape) for a, _ in different] == [(9, 8, 4, 4), (9,)]  # the location module
    assert torch.stack([b.norm() for _, b in different]).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert max(norms) <= 0.5 * 2**0.5 + 1e-6
    assert norms[0] > 0.4


@pytest.mark.parametrize("method", ["fcn", "topdown"])
def test_recomputed_gradients_are_the_same(folder: Path, tmp_path: Path, method: str) -> None:
    kept = gradients(folder, tmp_path, method=method)
    again = gradients(folder, tmp_path, "recompute=true", method=method)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@dataclass
class Saved:
    """Bytes that autograd keeps for the backward pass, each storage once; recomputed parts keep their own."""

    bytes: int = 0

    def __post_init__(self) -> None:
        self._known: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def kept_bytes(cells: float, recompute: bool) -> tuple[int, int]:
    """Bytes kept by one look with gradients, and its fixations."""
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=3, c_t=cells, initial_probability=None, samples=1)
    model = TopDown(config, build_encoder("residual", channels=1), 2)
    model.encoder.running = Running(recompute=recompute)
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        _, _, trace = LearningRule(config, 3)(
            model, [random_image(0, 512, 512)], torch.tensor([1]), torch.Generator().manual_seed(0)
        )
    return saved.bytes, len(trace.image)


def test_recomputation_keeps_little_of_a_fixation() -> None:
    """Beside the kept bytes stand the patches themselves: 4,096 bytes a fixation here."""
    (few, small), (many, large) = kept_bytes(10.0, False), kept_bytes(100.0, False)
    (few_again, _), (many_again, again) = kept_bytes(10.0, True), kept_bytes(100.0, True)
    assert again == large > 3 * small
    kept, recomputed = (many - few) / (large - small), (many_again - few_again) / (large - small)
    assert kept > 150_000
    assert recomputed + 64**2 < kept / 10


@pytest.mark.parametrize("method", ["fcn", "topdown"])
def test_bfloat16_reaches_the_encoder_alone(folder: Path, tmp_path: Path, method: str) -> None:
    dataset = load_dataset(folder)
    card, config = plan_training(dataset, method=method, assignments=FCN if method == "fcn" else SMALL)
    found: list[dict[str, Tensor]] = []
    seen: list[torch.dtype] = []
    for precision in ("float32", "bfloat16"):
        chosen = replace(config, precision=precision)  # type: ignore[arg-type]
        trainer = Trainer(dataset, card, chosen, tmp_path, device="cpu")
        model: Any = trainer.model
        model.encoder.stem.register_forward_hook(lambda *call: seen.append(call[2].dtype))
        examples = dataset.split("train")
        pyramids, _ = trainer.images.open_all([example.path for example in examples])
        loss, _, trace = trainer.stages[0].objective(
            model, pyramids, torch.tensor([e.label for e in examples]), torch.Generator().manual_seed(0)
        )
        assert {trace.vector.dtype, trace.logit.dtype, loss.dtype} == {torch.float32}
        loss.backward()
        found.append({name: weight.grad.flatten() for name, weight in model.named_parameters()})
    assert set(seen) == {torch.float32, torch.bfloat16}
    one, other = (torch.cat(list(gradients.values())) for gradients in found)
    assert not torch.equal(one, other)
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99
