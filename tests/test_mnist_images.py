"""The MNIST experiments' images: what a variant promises, and that the same seed draws the same."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.mnist_images import NOISE, VARIANTS, Digits, data_folder, load_digits
from pyrtrav.geometry import Region
from pyrtrav.pyramid import open_pyramid


@pytest.fixture
def digits() -> Digits:
    """Made up: full squares of one value each, so that one can see where they lie."""
    squares = torch.arange(1, 9, dtype=torch.uint8).mul(20)[:, None, None].expand(8, 28, 28).contiguous()
    grass = torch.from_numpy(np.random.default_rng(0).integers(1, 15, (80, 90), np.uint8))
    return Digits(squares, torch.arange(8), grass)


def draw(digits: Digits, variant: str, resolution: int = 56, seed: int = 0, side: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return digits.images(torch.arange(8), variant, resolution, generator, side=side)  # type: ignore[arg-type]


def test_a_digit_lies_whole_on_black_anywhere(digits: Digits) -> None:
    corners = set()
    for seed in range(40):
        images = draw(digits, "plain", seed=seed)
        for number, image in enumerate(images[:, 0]):
            rows, columns = torch.nonzero(image, as_tuple=True)
            top, left = int(rows.min()), int(columns.min())
            corners |= {("y", top), ("x", left)}
            assert (image[top : top + 28, left : left + 28] == 20 * (number + 1)).all()
            assert float(image.sum()) == 20 * (number + 1) * 28 * 28
    assert {("y", 0), ("x", 0), ("y", 28), ("x", 28)} <= corners


def test_grass_is_cut_from_the_photograph(digits: Digits) -> None:
    image = draw(digits, "textured")[3, 0].to(torch.uint8).numpy()
    grass = digits.grass.numpy()
    seen = image != 80
    places = [
        (y, x)
        for y in range(80 - 56 + 1)
        for x in range(90 - 56 + 1)
        if (grass[y : y + 56, x : x + 56][seen] == image[seen]).all()
    ]
    assert len(places) == 1


def test_noise_replaces_a_tenth_half_black_half_white(digits: Digits) -> None:
    images = torch.cat([draw(digits, "noisy", seed=seed) for seed in range(30)])
    share = float((images == 255).double().mean())
    assert share == pytest.approx(NOISE / 2, abs=0.003)
    # Black shows on the digits alone, which cover a quarter of the canvas.
    lit = images[7::8] == 160
    assert float(lit.double().mean()) == pytest.approx((1 - NOISE) / 4, abs=0.003)


@pytest.mark.parametrize("variant", VARIANTS)
def test_coarser_images_are_means_and_seeds_decide(digits: Digits, variant: str) -> None:
    fine, coarse = draw(digits, variant, 56), draw(digits, variant, 14)
    assert torch.allclose(fine.view(8, 14, 4, 14, 4).mean((2, 4)), coarse[:, 0])
    assert torch.equal(fine, draw(digits, variant, 56))
    assert not torch.equal(fine, draw(digits, variant, 56, seed=1))
    assert draw(digits, "plain", 28, side=112).shape == (8, 1, 28, 28)


real = pytest.mark.skipif(not (data_folder() / "mnist").is_dir(), reason="the real MNIST files are not there")


@real
def test_the_real_files_are_split_as_in_the_paper() -> None:
    train, validation = load_digits(data_folder())
    assert (len(train), len(validation)) == (55_000, 5_000)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    whole = torch.cat([train.digits, validation.digits]).double()
    assert float(whole.mean()) == pytest.approx(33.318421, abs=1e-6)


@real
def test_megapixel_images_hold_three_digits_of_their_label(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.mnist_megapixel", str(tmp_path), "--images", "10", "--side", "600"]
    subprocess.run(command, check=True, capture_output=True, env=dict(os.environ, PYRTRAV_DATA=str(data_folder())))
    with (tmp_path / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["train"] * 8 + ["val"] * 2
    train, _ = load_digits(data_folder())
    kinds = {digit.numpy().tobytes(): int(label) for digit, label in zip(train.digits, train.labels, strict=True)}
    for row in rows[:3]:
        with open_pyramid(tmp_path / row["path"], channels=1) as pyramid:
            assert [level.width for level in pyramid.levels] == [600, 300]
            canvas = pyramid.read(Region(0, 0, 600, 600), 600).pixels[:, :, 0]
        found = []
        for offset_y in range(600 % 28 + 1):
            for offset_x in range(600 % 28 + 1):
                cut = (
                    canvas[offset_y : offset_y + 588, offset_x : offset_x + 588].reshape(21, 28, 21, 28).swapaxes(1, 2)
                )
                hits = [
                    kinds[tile.tobytes()] for tile in cut.reshape(-1, 28, 28) if tile.any() and tile.tobytes() in kinds
                ]
                if len(hits) == 5:
                    found.append(hits)
        (labels,) = found
        assert sorted(labels.count(label) for label in set(labels)) == [1, 1, 3]
        assert labels.count(int(row["label"])) == 3
