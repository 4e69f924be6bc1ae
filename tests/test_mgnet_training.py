"""The multi-glimpse toy experiments: what they draw, and that an interrupted training goes on exactly."""

from pathlib import Path

import pytest
import torch

from benchmarks.mgnet_train import Job, Run, Schedule, draw_images
from benchmarks.mnist_images import Digits
from pyrtrav.encoders.running import Running


def some_digits(count: int) -> Digits:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(100, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    return Digits(pixels, torch.arange(count) % 10, torch.zeros(200, 200, dtype=torch.uint8))


def test_digits_lie_whole_on_the_canvas_and_noise_is_clipped() -> None:
    digits, index = some_digits(40), torch.arange(40)
    plain = draw_images(digits, index, "translated", torch.Generator().manual_seed(1))
    assert plain.shape == (40, 1, 112, 112)
    assert torch.equal(plain.sum((1, 2, 3)), digits.digits.float().sum((1, 2)))
    noisy = draw_images(digits, index, "gaussian", torch.Generator().manual_seed(1))
    assert noisy.min() == 0
    assert noisy.max() == 255
    # Of noise on black half is clipped to black, and the rest has the mean 0.3 * sqrt(2 / pi).
    black = noisy[plain == 0]
    assert (black == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert black[(black > 0)].mean() / 255 == pytest.approx(0.3 * (2 / torch.pi) ** 0.5, rel=0.02)


def test_training_in_bfloat16_is_judged_in_float32(tmp_path: Path) -> None:
    found = []
    for bfloat16 in (False, True):
        schedule = Schedule(epochs=1, train_images=8, batch=4, bfloat16=bfloat16)
        run = Run(Job("translated", "mgnet"), schedule, (some_digits(8), some_digits(10)), tmp_path, "cpu")
        assert run.train(lambda: False) is not None
        assert run.model.encoder.running == Running(bfloat16=False)
        found.append(torch.cat([weight.detach().flatten() for weight in run.model.parameters()]))
    assert not torch.equal(*found)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.02)


@pytest.mark.parametrize("job", [Job("translated", "mgnet"), Job("gaussian", "ff")], ids=lambda job: job.name)
def test_an_interrupted_training_ends_with_the_same_weights(job: Job, tmp_path: Path) -> None:
    data, schedule = (some_digits(8), some_digits(10)), Schedule(epochs=2, train_images=8, batch=4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    found = Run(job, schedule, data, whole, "cpu").train(lambda: False)
    calls = iter([False, True])
    assert Run(job, schedule, data, parts, "cpu").train(lambda: next(calls)) is None
    again = Run(job, schedule, data, parts, "cpu").train(lambda: False)
    assert found is not None
    assert again is not None
    assert again["accuracies"] == found["accuracies"]
    name = f"{job.name}.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
