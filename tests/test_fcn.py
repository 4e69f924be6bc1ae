"""The whole image in blocks of bounded memory: the same features and gradients as at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrtrav.encoders import Baseline
from pyrtrav.methods.fcn import CrossEntropy, Fcn
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from tests.samples import REPOSITORY
from tests.test_memory import write_sparse_pyramid

ENCODERS = {
    "mnist-m3": {},
    "mnist-m1": {},
    "residual": {"base_resolution": 16, "widths": [4, 8], "channels": 1},
    "multigrid": {"base_resolution": 32, "network": "MG-6", "channels": 1},
    "multires": {"base_resolution": 16, "blocks": 2, "channels": 1},
}
SIDE = 112

every_kind = pytest.mark.parametrize("encoder", ENCODERS)


def make(encoder: str) -> Fcn:
    torch.manual_seed(0)
    model = build_model(ModelCard("fcn", EncoderSpec(encoder, ENCODERS[encoder]), {"halvings": 3}, ("a", "b"), 1))
    assert isinstance(model, Fcn)
    for weight in model.parameters():  # zeros of the initialisation would hide what lies behind them
        torch.nn.init.normal_(weight, std=0.1)
    return model.double().eval()


def image(seed: int = 0) -> ArrayPyramid:
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE), np.uint8)
    return ArrayPyramid(pixels, channels=1)


@every_kind
def test_blocks_equal_the_whole_image(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(encoder)
    with torch.no_grad():
        whole = model.look([image()], Settings(select="all")).vector
        for side in (36, 60):
            monkeypatch.setattr("pyrtrav.methods.fcn.BLOCK_PIXELS", side * side)
            torch.testing.assert_close(model.look([image()], Settings(select="all")).vector, whole)


@every_kind
def test_it_is_the_paper_s_baseline(encoder: str) -> None:
    """On an image that needs no scaling: the encoder over all of it, the mean, and the head."""
    model = make(encoder)
    baseline = Baseline(model.encoder, 2).double()
    baseline.head = model.head
    side = model.side_of(model.look([image()], Settings(select="all")).roots[0])
    pixels = torch.from_numpy(image().read(image().bounds, side).pixels).double()[None, None, :, :, 0] / 255
    with torch.no_grad():
        found = model.believe(model.look([image()], Settings(select="all")), 0)
        torch.testing.assert_close(found, baseline(pixels))


@every_kind
def test_the_gradient_of_blocks_is_that_of_the_whole_image(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for pixels in (4_000_000, 40 * 40):
        monkeypatch.setattr("pyrtrav.methods.fcn.BLOCK_PIXELS", pixels)
        model = make(encoder)
        loss, _, _ = CrossEntropy()(model, [image(0), image(1)], torch.tensor([0, 1]), torch.Generator())
        loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[1][name], gradient, msg=name)


TRAIN = """
import json, resource, sys, torch
from pyrtrav.methods import fcn
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model
from pyrtrav.pyramid import open_pyramid
fcn.BLOCK_PIXELS = 256 * 256
options = {"base_resolution": 64, "widths": [4, 4]}
card = ModelCard("fcn", EncoderSpec("residual", options), {"halvings": int(sys.argv[2])}, ("a", "b"), 3)
model = build_model(card)
with open_pyramid(sys.argv[1]) as image:
    loss, _, trace = fcn.CrossEntropy()(model, [image], torch.tensor([0]), torch.Generator())
    loss.backward()
print(json.dumps([model.pixels_encoded(trace)[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def test_a_training_step_takes_the_same_memory_for_any_image(tmp_path: Path) -> None:
    """Of 16 times the pixels nothing is kept: their activations alone would be over 100 MB."""
    path = tmp_path / "slide.tif"
    write_sparse_pyramid(path, 8192)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYRTRAV_CACHE_BYTES": str(4 << 20)}
    peaks = []
    for halvings, side in ((3, 512), (5, 2048)):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(path), str(halvings)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=REPOSITORY,
        )
        pixels, peak = json.loads(done.stdout)
        assert pixels == side * side
        peaks.append(peak)
    assert peaks[1] <= 1.10 * peaks[0], peaks
