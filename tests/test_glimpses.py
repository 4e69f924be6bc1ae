"""Glimpses are what sampling the whole image in memory gives, in value and gradient, and read only their windows."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from benchmarks.gigapixel_glimpses import measure
from benchmarks.make_slide import write_slide
from pyrtrav.errors import ConfigError
from pyrtrav.glimpses import GlimpseSampler
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.sampling import ImageStack

CPU = torch.device("cpu")


def plain(pixels: Tensor, box: Tensor, size: int, step: int, root: int) -> Tensor:
    """One glimpse of a square image (c, h, w) of side ``root`` by four lookups a sample, in float64."""
    level = avg_pool2d(pixels[None], step)[0].double()
    x, y, w, h = box
    share = torch.arange(size) / (size - 1)
    columns, rows = (
        (0.5 + (at + length * share) * (root - 1) / root).clamp(step / 2, root - step / 2) / step - 0.5
        for at, length in ((x, w), (y, h))
    )
    out = torch.zeros(len(pixels), size, size, dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            top, left = int(row.detach().floor()), int(column.detach().floor())
            bottom, right = min(top + 1, level.shape[1] - 1), min(left + 1, level.shape[2] - 1)
            down, along = row - top, column - left
            upper = level[:, top, left] * (1 - along) + level[:, top, right] * along
            lower = level[:, bottom, left] * (1 - along) + level[:, bottom, right] * along
            out[:, i, j] = upper * (1 - down) + lower * down
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.floats(0.05, 0.99), st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 100))
def test_a_glimpse_is_a_sample_of_the_whole_image(size: int, part: float, right: float, down: float, seed: int) -> None:
    side = 64
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    width = part * side
    box = torch.tensor([right * (side - width), down * (side - width), width, width], requires_grad=True)
    found, errors = GlimpseSampler([ArrayPyramid(pixels)], size, CPU)(np.zeros(1, np.int64), box[None])
    assert not errors
    step = 1
    while 2 * step <= width / size * (1 + 1e-9):
        step *= 2
    # Patches of files are rounded to whole numbers.
    planes = torch.from_numpy(pixels).permute(2, 0, 1).float()
    again = box.detach().double().requires_grad_()
    expected = plain(planes, again, size, step, side) / 255
    torch.testing.assert_close(found[0].double(), expected, atol=0.51 / 255 if step > 1 else 1e-5, rtol=0)
    if step == 1:
        weights = torch.from_numpy(np.random.default_rng(seed).normal(size=found.shape[1:]))
        (ours,) = torch.autograd.grad((found[0] * weights.float()).sum(), box)
        (theirs,) = torch.autograd.grad((expected * weights).sum(), again)
        torch.testing.assert_close(ours.double(), theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("by_scale", [True, False])
def test_images_in_memory_are_sampled_as_by_torch(by_scale: bool) -> None:
    """Single pixels: the spatial transformer's own sampling, corners aligned."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 1, 56, 56), generator=generator).float()
    scale, at = torch.tensor([1.0, 0.5, 0.2]), torch.tensor([[0.0, 0.0], [-0.5, 0.25], [0.3, 0.8]])
    boxes = torch.stack([28 * (at[:, 0] - scale + 1), 28 * (at[:, 1] - scale + 1), 56 * scale, 56 * scale], 1)
    found, _ = GlimpseSampler(ImageStack(pixels), 14, CPU, by_scale=by_scale)(np.arange(3), boxes.requires_grad_())
    theta = torch.zeros(3, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, at
    grid = affine_grid(theta, [3, 1, 14, 14], align_corners=True)
    expected = grid_sample(pixels / 255, grid, align_corners=True)
    if by_scale:
        # 4, 2 and 0.8 pixels from sample to sample.
        assert not torch.allclose(found[:2], expected[:2], atol=0.05)
        torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=0)
        as_files = GlimpseSampler(
            [ArrayPyramid(image.permute(1, 2, 0).byte().numpy(), channels=1) for image in pixels], 14, CPU
        )
        torch.testing.assert_close(found, as_files(np.arange(3), boxes)[0], atol=0.51 / 255, rtol=0)
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def wide_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 6000, 3), np.uint8)
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 4, 16):
            tif.write(pixels[::step, ::step], tile=(256, 256), photometric="rgb", subfiletype=int(step > 1))
    return path


def test_only_the_window_is_read(wide_slide: Path) -> None:
    shared_cache().clear()
    with open_pyramid(wide_slide) as pyramid:
        root = torch.tensor([2990.0, 1990.0, 40.0, 40.0], requires_grad=True)
        found, _ = GlimpseSampler([pyramid], 28, CPU)(np.zeros(1, np.int64), root[None])
        found.sum().backward()
        assert root.grad is not None
        assert pyramid.cost.tiles_decoded <= 4
        stored = pyramid.read(pyramid.bounds, (6000, 4096)).pixels
        # The root is a square of 6,000 px, 952 px of which lie above the slide.
        first = sampled(stored, 0.5 + 2990 * 5999 / 6000, -952 + 0.5 + (1990 + 952) * 5999 / 6000)
        assert found[0, 0, 0, 0].item() * 255 == pytest.approx(first, abs=1e-2)


def sampled(pixels: np.ndarray, x: float, y: float) -> float:
    left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    along, down = x - 0.5 - left, y - 0.5 - top
    a, b, c, d = (float(pixels[top + j, left + i, 0]) for j in (0, 1) for i in (0, 1))
    return (a * (1 - along) + b * along) * (1 - down) + (c * (1 - along) + d * along) * down


def test_an_image_that_cannot_be_read_is_an_error_for_its_glimpses(wide_slide: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tif"
    data = bytearray(wide_slide.read_bytes())
    damaged.write_bytes(data)
    with tifffile.TiffFile(damaged, mode="r+") as tif:
        counts = tif.pages.first.tags["TileByteCounts"]
        counts.overwrite([100] * counts.count)
    images: list[Pyramid] = [open_pyramid(damaged), open_pyramid(wide_slide)]
    boxes = torch.tensor([[100.0, 100.0, 40.0, 40.0]]).repeat(2, 1)
    found, errors = GlimpseSampler(images, 28, CPU)(np.arange(2), boxes)
    assert list(errors) == [0]
    assert not found[0].any()
    assert found[1].any()


def test_single_pixels_of_slides_are_refused(wide_slide: Path) -> None:
    with open_pyramid(wide_slide) as pyramid, pytest.raises(ConfigError, match="by scale"):
        GlimpseSampler([pyramid], 28, CPU, by_scale=False)


def test_the_benchmark_finds_glimpses_of_a_slide_equal_to_whole_levels(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.svs", 2048)
    rows = measure(slide, 0)
    assert [row[1] for row in rows] == ["32", "16", "8", "4", "2", "1", "1"]
    for _, _, tiles, kilobytes, _, values, gradient in rows:
        assert 1 <= float(tiles) <= 16
        assert float(kilobytes) > 0
        assert float(values) < 1e-2
        assert float(gradient) < 1e-4
