"""Images whose patches carry a gradient are read as files are."""

import numpy as np
import pytest
import torch

from pyrtrav.errors import RegionError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tensor_image import InMemory, TensorImage

REGIONS = [
    Region(0, 0, 23, 17),
    Region(-4, -7, 31, 31),
    Region(3, 2, 4, 4),
    Region(5.25, 3.5, 9.3, 9.3),
    Region(20, 15, 8, 8),
    Region(40, 40, 8, 8),
]


def make(channels: int) -> tuple[Pyramid, torch.Tensor, tuple[int, ...]]:
    pixels = np.random.default_rng(channels).integers(0, 256, (17, 23, channels), np.uint8)
    background = (10, 200, 30)[:channels]
    kept = InMemory(pixels, path="here", background=background)
    return kept, torch.from_numpy(pixels).permute(2, 0, 1).double(), background


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, (5, 3)])
def test_patches_are_those_of_a_file(channels: int, size: int | tuple[int, int]) -> None:
    kept, pixels, background = make(channels)
    expected = kept.read_many(REGIONS, size).pixels
    assert (expected[-1] == background).all()
    for rounded in (True, False):
        image = TensorImage(pixels, background=background, rounded=rounded)
        found = (image.read_tensors(REGIONS, size) * 255).permute(0, 2, 3, 1).numpy()
        # The reader's canvas may begin a part of a pixel in a thousand elsewhere.
        assert np.abs(found - expected).max() <= (1 if rounded else 0.51)
        assert (np.rint(found) == expected).mean() > 0.99
        assert np.array_equal(image.read_many(REGIONS, size).pixels, expected)


def test_the_gradient_is_that_of_the_means() -> None:
    _, pixels, background = make(1)
    pixels = pixels[:, :8, :9].clone().requires_grad_()

    def read(values: torch.Tensor) -> torch.Tensor:
        return TensorImage(values, background=background, rounded=False).read_tensors(REGIONS, 3)

    assert torch.autograd.gradcheck(read, (pixels,), eps=1e-3)
    weights = torch.randn(read(pixels).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = torch.autograd.grad((read(pixels) * weights).sum(), pixels)[0]
    image = TensorImage(pixels, background=background)
    straight = torch.autograd.grad((image.read_tensors(REGIONS, 3) * weights).sum(), pixels)[0]
    torch.testing.assert_close(straight, smooth)


def test_written_as_bytes_it_is_clamped_and_rounded() -> None:
    values = torch.tensor([[[-3.0, 0.5, 1.5], [254.6, 300.0, 7.4]]])
    expected = [[0, 0, 2], [255, 255, 7]]
    image = TensorImage(values)
    assert image.as_bytes().read(image.bounds, (3, 2)).pixels[:, :, 0].tolist() == expected
    assert (image.read_tensors([image.bounds], (3, 2)) * 255)[0, 0].round().int().tolist() == expected
    unrounded = TensorImage(values, rounded=False)
    torch.testing.assert_close(unrounded.read_tensors([image.bounds], (3, 2))[0] * 255, values)


def test_a_region_without_area_is_refused() -> None:
    with pytest.raises(RegionError, match="needs an area"):
        TensorImage(torch.zeros(1, 4, 4)).read_tensors([Region(0, 0, 0, 4)], 2)
