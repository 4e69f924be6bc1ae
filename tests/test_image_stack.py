"""Images in memory are seen as files are, and what several draws look at is encoded once."""

import numpy as np
import pytest
import torch

from pyrtrav.errors import ConfigError, CorruptImageError
from pyrtrav.geometry import Grid, Region
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.sampling import ImageStack, PatchSampler, StackSampler
from pyrtrav.selection import Floats, Ints, Settings
from pyrtrav.trace import Trace, take_rows
from tests.small import SmallEncoder, random_image


def make_model(*, shared: bool = True, samples: int = 2) -> TopDown:
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=2, share_cells=shared, samples=samples, c_t=6.0)
    return TopDown(config, SmallEncoder(), 3).double()


def place_draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
    """Draws that depend on image and place alone."""
    place = trace.fixation_place()[parents] * 16 + cell
    return np.array([np.random.default_rng(number).random() for number in place.tolist()])


def pictures(count: int) -> np.ndarray:
    """Such that means over 4 x 4 pixels are whole: files round, a stack does not."""
    small = np.random.default_rng(0).integers(0, 16, (count, 16, 16), np.uint8) * 16
    small[:, 1::4, 1::4] |= 3
    return small


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_stack_is_seen_as_pyramids_are(shared: bool, samples: int) -> None:
    pixels = pictures(3)
    pyramids = [ArrayPyramid(picture, channels=1) for picture in pixels]
    stack = ImageStack(torch.from_numpy(pixels)[:, None].double())
    model, labels = make_model(shared=shared, samples=samples), torch.tensor([0, 2, 1])
    rounding = 0.5 / 255  # what a file's mean may be off by, as the model sees it
    found = []
    for images in (pyramids, stack):
        loss, metrics, trace = LearningRule(model.config, 2)(model, images, labels, place_draws)
        gradient = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        found.append((metrics, trace, gradient))
    (ours, trace, gradient), (theirs, other, expected) = found
    assert np.array_equal(trace.region, other.region)
    assert np.array_equal(trace.parent, other.parent)
    assert np.array_equal(trace.on, other.on)
    assert float((trace.vector - other.vector).detach().abs().max()) < 4 * rounding
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=10 * rounding)
    for a, b in zip(gradient, expected, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("cells", [3, 4, 5])
def test_cells_between_pixels_are_area_means_too(cells: int) -> None:
    """Five cells begin at eighths of a side, four at sixths: halves and thirds of pixels. Files have exact means."""
    pixels = np.random.default_rng(3).integers(0, 256, (2, 24, 24), np.uint8)
    stack = StackSampler(ImageStack(torch.from_numpy(pixels)[:, None].double()), 6)
    files = PatchSampler([ArrayPyramid(picture, channels=1) for picture in pixels], 6)
    grid, root = Grid(cells), Region(0.0, 0.0, 24.0, 24.0)
    places = [(depth, column, row) for depth in (0, 1, 2) for column in range(20) for row in range(20)]
    regions = [grid.lattice_region(root, *place) for place in places if max(place[1:]) < grid.positions(place[0])]
    region = np.array([each.as_tuple() for each in regions for _ in range(2)])
    image = np.arange(len(region)) % 2
    shown, _ = stack(image, region)
    kept, _ = files(image, region)
    # A file's are rounded to whole numbers.
    assert float((shown * 255 - kept).abs().max()) < 0.51


@pytest.mark.parametrize("side", [1 / 3, 0.34375, 0.4])
def test_other_sides_are_refused(side: float) -> None:
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=2, side=side, share_cells=False), SmallEncoder(), 3).double()
    with pytest.raises(ConfigError, match=r"use cells of side 0\.5"):
        model.look(ImageStack(torch.zeros(2, 1, 16, 16).double()), Settings("all", depth=2))


class CountingEncoder(SmallEncoder):
    """Knows what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return super().features(images)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_place_is_encoded_once_however_many_draws_or_paths_look_at_it(in_memory: bool, shared: bool) -> None:
    torch.manual_seed(0)
    encoder = CountingEncoder()
    model = TopDown(TopDownConfig(max_depth=2, share_cells=shared, samples=4), encoder, 3)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 16), np.uint8)
    one = [ArrayPyramid(picture, channels=1) for picture in pixels]
    images = (
        ImageStack(torch.from_numpy(pixels)[:, None].float()).repeated(4) if in_memory else one[:1] * 4 + one[1:] * 4
    )
    trace = model.look(images, Settings("sample", depth=2, share_cells=shared), torch.Generator().manual_seed(0))
    patches = torch.cat(encoder.seen)
    looks = {(int(i) // 4, *map(float, region)) for i, region in zip(trace.image, trace.region, strict=True)}
    assert len(patches) == len(looks) < len(trace.image)
    assert len(torch.unique(patches.flatten(1), dim=0)) == len(looks)
    # Every draw has the vector of the place that it looks at.
    alone = [model.look([picture], Settings("all", depth=2)) for picture in one]
    for fixation in range(len(trace.image)):
        whole = alone[trace.image[fixation] // 4]
        same = int(np.flatnonzero((whole.region == trace.region[fixation]).all(1))[0])
        torch.testing.assert_close(trace.vector[fixation], whole.vector[same], atol=0.02, rtol=0)


def test_an_image_that_fails_leaves_in_all_of_its_draws() -> None:
    class Broken(ArrayPyramid):
        def read_many(self, regions, size, *, out=None, mask=False):  # type: ignore[no-untyped-def]
            raise CorruptImageError(self.path, "torn", level=0, column=0, row=0)

    broken, good = Broken(np.zeros((16, 16), np.uint8), channels=1), random_image(1)
    trace = make_model().look([broken, good, broken], Settings("all", depth=1, share_cells=True))
    assert [error is not None for error in trace.errors] == [True, False, True]
    assert set(trace.image.tolist()) == {1}


def test_a_patch_that_could_not_be_read_is_the_same_every_time() -> None:
    class Torn(ArrayPyramid):
        def read_many(self, regions, size, *, out=None, mask=False):  # type: ignore[no-untyped-def]
            out[:] = 7
            raise CorruptImageError(self.path, "torn", level=0, column=0, row=0)

    images = [Torn(np.zeros((16, 16), np.uint8), channels=1), random_image(1)]
    patches, errors = PatchSampler(images, 4)(np.array([0, 1]), np.array([[0.0, 0.0, 8.0, 8.0]] * 2))
    assert list(errors) == [0]
    assert not patches[0].any()
    assert patches[1].any()


@pytest.mark.parametrize("shape", [(1, 1, 12, 12), (1, 1, 16, 8), (1, 1, 2, 2)])
def test_a_stack_of_other_sides_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="stacked images have sides of 4 x 2"):
        make_model().look(ImageStack(torch.zeros(shape)), Settings("all", depth=1))


def test_a_stack_is_a_sequence_of_its_images() -> None:
    stack = ImageStack(torch.zeros(3, 1, 8, 8)).repeated(2)
    assert len(stack) == len(list(stack)) == len(stack[:]) == 6
    assert stack[5].bounds.width == 8
    with pytest.raises(IndexError):
        stack[6]


def test_the_gradient_of_rows_taken_several_times_is_the_same_every_time() -> None:
    """Added up by several threads in any order it would not be, and a seed would not give the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    try:
        random = torch.Generator().manual_seed(0)
        values = torch.randn(300, 512, generator=random, requires_grad=True)
        index = torch.randint(0, 300, (4000,), generator=random)
        weight = torch.randn(4000, 512, generator=random)
        first, *others = (torch.autograd.grad(take_rows(values, index), values, weight)[0] for _ in range(20))
        assert all(torch.equal(first, other) for other in others)
        expected = torch.zeros(300, 512, dtype=torch.float64)
        for row, number in enumerate(index.tolist()):
            expected[number] += weight[row]
        torch.testing.assert_close(first.double(), expected, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads)
