"""Augmentation: turns keep places, and colours are those of an image, whatever is read of it and with what."""

from collections.abc import Sequence

import kornia
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyrtrav.colours import Colours, Palette
from pyrtrav.encoders.base import Encoder
from pyrtrav.encoders.residual import ResidualEncoder
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid, Region, root_region
from pyrtrav.methods.fcn import Fcn, FcnConfig
from pyrtrav.methods.mil import Mil, MilConfig
from pyrtrav.methods.topdown import TopDown, TopDownConfig
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.training.augment import View, random_view
from pyrtrav.training.jitter import HUE, STAINS, colour_map, random_colours, stain_map
from pyrtrav.traversal import Policy, Traversal
from tests.small import SmallEncoder, random_image

TURNS = [(turns, mirror) for turns in range(4) for mirror in (False, True)]


class Darkness(Encoder):
    """The map is how dark each quarter of a quarter is; what a model is shown is remembered."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__(
            channels=channels, base_resolution=8, vector_size=1, map_size=(4, 4), map_channels=1, mean=0.0, std=1.0
        )
        self.scale = nn.Parameter(torch.ones(()))
        self.shown: list[torch.Tensor] = []

    def features(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return self.scale * nn.functional.avg_pool2d(1 - images.mean(1, keepdim=True), 2)


class Dark(Policy):
    """Attends the cells that hold anything dark: a decision that turns with the image."""

    grid = Grid()

    def forward(self, encoding: object) -> torch.Tensor:
        return 100 * (nn.functional.avg_pool2d(encoding.map, 2, stride=1).flatten(1) - 0.006)  # type: ignore[attr-defined]


def shown(images: Sequence[object], patches: torch.Tensor, image: Sequence[int]) -> torch.Tensor:
    seen = Palette(images)(patches, np.array(image), torch.float64)
    return seen.double() / 255 if seen.dtype == torch.uint8 else seen  # as an encoder takes bytes


def random_patches(count: int, channels: int = 3, side: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=torch.Generator().manual_seed(seed)).byte()


def view_of(colours: Colours | None) -> View:
    return View(ArrayPyramid(np.zeros((8, 8, 3), np.uint8)), 4, 0, False, colours)


# Turns.


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (37, 64)])
def test_a_turned_view_attends_the_same_places_of_the_file(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 255, np.uint8)
    pixels[9:14, 20:23] = 0
    pixels[size[0] - 6 : size[0] - 3, 5:9] = 40
    image = ArrayPyramid(pixels)
    traversal = Traversal(Darkness(), Dark())

    def attended(view: View) -> set[tuple[float, ...]]:
        with torch.no_grad():
            trace: Trace = traversal([view], Settings(select="threshold", tau=(0.5,), depth=3))
        return {view.in_file(Region(*region)).as_tuple() for region in trace.region.tolist()}

    places = attended(View(image, 8, 0, False))
    deepest = {place for place in places if place[2] == 8}
    assert len(deepest) > 3
    assert any(x <= 20 and x + side >= 23 and y <= 9 and y + side >= 14 for x, y, side, _ in deepest)
    for turns, mirror in TURNS:
        assert attended(View(image, 8, turns, mirror)) == places


@given(turn=st.sampled_from(TURNS), box=st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2))
def test_turning_and_turning_back_is_no_turn(turn: tuple[int, bool], box: tuple[int, ...]) -> None:
    view = View(ArrayPyramid(np.zeros((12, 20, 1), np.uint8)), 4, *turn)
    region = Region(*map(float, box))
    assert view._turn(view.in_file(region), forward=True) == region
    assert view.in_file(view._turn(region, forward=True)) == region


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (64, 37)])
def test_a_shifted_view_shows_the_whole_image_where_it_says(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image, random = ArrayPyramid(pixels), np.random.default_rng(1)
    sides, places = [], []
    for turn in (False, True):
        for _ in range(20):
            view = random_view(image, 8, random, turn=turn, mirror=True, shift=0.5, jitter=0)
            frame, glance = view.in_file(view.frame), root_region(image.bounds, 8)
            for start, end, first, last in (
                (frame.x, frame.right, glance.x, glance.right),
                (frame.y, frame.bottom, glance.y, glance.bottom),
            ):
                assert start <= first + 1e-9
                assert last <= end + 1e-9
            assert 1 <= frame.width / glance.width <= 1.5
            sides.append(frame.width / glance.width)
            places.append((glance.x - frame.x) / (frame.width - glance.width))
            # What is read of a region of the view is that region of the file, turned as the view is.
            region = Region(view.frame.x + frame.width / 4, view.frame.y + frame.width / 3, 16.0, 16.0)
            stored = image.read_many([view.in_file(region)], 16).pixels[0]
            turned = np.rot90(stored, view.turns)
            np.testing.assert_array_equal(
                view.read_many([region], 16).pixels[0], turned[:, ::-1] if view.mirror else turned
            )
    assert max(sides) - min(sides) > 0.3
    assert max(places) - min(places) > 0.7


@pytest.mark.parametrize("method", ["topdown", "mil", "fcn"])
def test_every_method_looks_at_the_frame_of_a_shifted_view(method: str) -> None:
    """As at an image that has those margins: where it looks, and what it believes."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    margins = np.full((32, 32), 255, np.uint8)
    margins[12:28, 4:20] = pixels
    framed = View(ArrayPyramid(pixels, channels=1), 4, 0, False, frame=Region(-4.0, -12.0, 32.0, 32.0))
    models = {
        "topdown": lambda: TopDown(TopDownConfig(max_depth=2), SmallEncoder(), 3),
        "mil": lambda: Mil(MilConfig(depth=2), SmallEncoder(), 3),
        "fcn": lambda: Fcn(FcnConfig(2), ResidualEncoder(channels=1, base_resolution=4, widths=(4,)), 3),
    }
    model = models[method]()
    with torch.no_grad():
        trace = model.look([framed], Settings(select="all", depth=2))
        plain = model.look([View(ArrayPyramid(pixels, channels=1), 4, 0, False)], Settings(select="all", depth=2))
        whole = model.look([ArrayPyramid(margins, channels=1)], Settings(select="all", depth=2))
    assert trace.roots[0].as_tuple() == (-4.0, -12.0, 32.0, 32.0)
    found = dict(zip(map(tuple, trace.region.tolist()), trace.vector, strict=True))
    expected = {
        (x - 4, y - 12, w, h): vector
        for (x, y, w, h), vector in zip(whole.region.tolist(), whole.vector, strict=True)
        # Cells outside of the image are candidates of the larger one alone.
        if x < 20 and x + w > 4 and y < 28 and y + h > 12
    }
    assert found.keys() == expected.keys()
    for region, vector in found.items():
        torch.testing.assert_close(vector, expected[region])
    assert set(map(tuple, plain.region.tolist())) != found.keys()


def test_hints_move_with_a_shifted_view() -> None:
    image = ArrayPyramid(np.zeros((64, 64, 3), np.uint8))
    hint = Region(5.0, 9.0, 3.0, 4.0)
    view = random_view(image, 8, np.random.default_rng(2), turn=False, mirror=True, shift=0.5, jitter=0, hints=[hint])
    assert view.frame.width > 64
    assert view.in_file(view.hints[0]).as_tuple() == pytest.approx(hint.as_tuple())


def test_a_mirrored_view_keeps_up_and_down() -> None:
    image, random = ArrayPyramid(np.zeros((8, 8, 3), np.uint8)), np.random.default_rng(0)
    views = [random_view(image, 4, random, turn=False, mirror=True, jitter=0) for _ in range(20)]
    assert {(view.turns, view.mirror) for view in views} == {(0, False), (0, True)}


# Colours as such.


def test_the_stains_are_the_published_ones() -> None:
    """Unit vectors that Ruifrok's ImageJ plugin lists for H&E DAB, which are of the same slides."""
    published = [[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]]
    np.testing.assert_allclose(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True), published, atol=0.006)


def test_stains_by_hand() -> None:
    """A unit of each stain alone grows by its own gain; glass takes the shift."""
    stronger = stain_map(np.array([1.2, 0.9, 1.0]), np.zeros(3))
    np.testing.assert_allclose(stronger @ [0.65, 0.70, 0.29, 1], [0.78, 0.84, 0.348])
    np.testing.assert_allclose(stronger @ [0.07, 0.99, 0.11, 1], [0.063, 0.891, 0.099])
    np.testing.assert_allclose(stronger @ [0.27, 0.57, 0.78, 1], [0.27, 0.57, 0.78])
    shifted = stain_map(np.ones(3), np.array([0.1, 0.0, 0.0]))
    np.testing.assert_allclose(shifted @ [0, 0, 0, 1], [0.065, 0.07, 0.029])


@given(gain=st.tuples(*[st.floats(0.8, 1.2)] * 3), offset=st.tuples(*[st.floats(-0.2, 0.2)] * 3))
@settings(deadline=None, max_examples=20)
def test_stain_jitter_is_separation_change_and_mixing(gain: tuple[float, ...], offset: tuple[float, ...]) -> None:
    """As skimage separates and combines stains: with rows of pixels, and logarithms of its own base."""
    patches = random_patches(3).clamp(min=1)
    light = patches.permute(0, 2, 3, 1).numpy() / 255
    base = np.log(1e-6)
    stains = (np.log(light) / base) @ np.linalg.inv(STAINS)
    changed = stains * gain + np.array(offset) / -base
    expected = np.exp(-(changed * -base) @ STAINS).clip(0, 1)
    colours = Colours(density=stain_map(np.array(gain), np.array(offset)))
    got = shown([view_of(colours)], patches, [0, 0, 0])
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), expected, atol=1e-9)


@given(brightness=st.floats(-0.3, 0.3), contrast=st.floats(0.5, 1.5), saturation=st.floats(0.5, 1.5))
@settings(deadline=None, max_examples=20)
def test_jitter_is_kornia_s(brightness: float, contrast: float, saturation: float) -> None:
    patches = random_patches(2)
    # kornia clamps after each of its steps, the map once: colours of medium saturation stay inside.
    patches = (patches // 4 + 96).byte()
    light = patches.double() / 255
    grayer = kornia.enhance.adjust_saturation_with_gray_subtraction(light, saturation)
    expected = kornia.enhance.adjust_brightness(
        kornia.enhance.adjust_contrast(grayer, contrast, clip_output=False), brightness
    )
    colours = Colours(value=colour_map(3, brightness, contrast, saturation, 0.0))
    torch.testing.assert_close(shown([view_of(colours)], patches, [0, 0]), expected, atol=1e-6, rtol=0)


def test_hue_turns_kornia_s_chroma_plane() -> None:
    light = random_patches(2).double() / 255
    angle = 0.3
    luma, u, v = kornia.color.rgb_to_yuv(light).unbind(1)
    turned = torch.stack([luma, np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v], 1)
    matrix = torch.from_numpy(colour_map(3, 0.0, 1.0, 1.0, angle)[:, :3])
    got = torch.einsum("ij,njhw->nihw", matrix, light)
    torch.testing.assert_close(got, kornia.color.yuv_to_rgb(turned), atol=3e-3, rtol=0)
    # It turns the way that HSV turns: red to yellow, green to cyan, blue to magenta.
    change = colour_map(3, 0.0, 1.0, 1.0, angle)[:, :3] - np.eye(3)
    assert all(change[(i + 1) % 3, i] > 0 > change[(i + 2) % 3, i] + change[i, i] for i in range(3))


@given(hue=st.floats(-3, 3), saturation=st.floats(0, 2))
def test_hue_and_saturation_keep_gray_and_luma(hue: float, saturation: float) -> None:
    matrix = colour_map(3, 0.0, 1.0, saturation, hue)[:, :3]
    np.testing.assert_allclose(matrix @ [1, 1, 1], [1, 1, 1], atol=1e-12)
    np.testing.assert_allclose([0.299, 0.587, 0.114] @ matrix, [0.299, 0.587, 0.114], atol=1e-12)


# Colours of images.


@pytest.mark.parametrize("channels", [1, 3])
def test_no_strength_is_no_change(channels: int) -> None:
    random = np.random.default_rng(0)
    assert random_colours(random, channels, jitter=0, hed=0) is None
    assert random.random() == np.random.default_rng(0).random()
    patches = random_patches(4, channels)
    same = Colours(np.eye(channels, channels + 1), np.eye(channels, channels + 1))
    for images in ([view_of(None)], [view_of(same)], [object()]):
        assert torch.equal(shown(images, patches, [0] * 4), patches.double() / 255)


def test_small_strengths_are_small_changes() -> None:
    patches = random_patches(16)
    for jitter, hed in [(1e-3, 0.0), (0.0, 1e-3), (1e-3, 1e-3)]:
        random = np.random.default_rng(1)
        views = [view_of(random_colours(random, 3, jitter=jitter, hed=hed)) for _ in range(16)]
        change = shown(views, patches, range(16)) - patches.double() / 255  # type: ignore[arg-type]
        assert 0 < change.abs().max() < 0.01


@given(seed=st.integers(0, 50), jitter=st.sampled_from([0.0, 0.2, 0.9]), hed=st.sampled_from([0.0, 0.2, 0.9]))
@settings(deadline=None, max_examples=30)
def test_what_else_is_in_the_batch_does_not_matter(seed: int, jitter: float, hed: float) -> None:
    random = np.random.default_rng(seed)
    views = [view_of(random_colours(random, 3, jitter=jitter, hed=hed)) for _ in range(3)] + [view_of(None)]
    patches, image = random_patches(9, seed=seed), random.integers(0, 4, 9)
    together = shown(views, patches, image)
    assert together.min() >= 0
    assert together.max() <= 1
    for i, number in enumerate(image.tolist()):
        alone = shown([views[number]], patches[i : i + 1], [0])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-12, rtol=0)


def test_an_image_has_the_same_colours_at_every_depth() -> None:
    """Of an image of one colour every patch has one colour, its own, through whatever reads it."""
    random = np.random.default_rng(3)
    image = ArrayPyramid(np.full((64, 64, 3), (200, 90, 160), np.uint8))
    views = [random_view(image, 8, random, turn=True, jitter=0.3, hed=0.1) for _ in range(3)]
    encoder = Darkness()
    with torch.no_grad():
        trace = Traversal(encoder, Dark())(views, Settings(select="all", depth=2, encode_batch=7))
        colours = torch.cat(encoder.shown)
    assert trace.depth.max() == 2
    seen = []
    for number in range(3):
        own = colours[trace.image == number].permute(0, 2, 3, 1).reshape(-1, 3)
        torch.testing.assert_close(own, own[:1].expand_as(own), atol=1e-6, rtol=0)
        seen.append(own[0])
    assert min((seen[i] - seen[j]).abs().max() for i in range(3) for j in range(i)) > 0.01
    assert (seen[1] - torch.tensor([200, 90, 160]) / 255).abs().max() > 0.01


def test_the_whole_image_is_painted_too() -> None:
    """The baseline reads strips and not patches."""
    view = View(
        ArrayPyramid(np.full((16, 16, 3), 100, np.uint8)), 8, 0, False, Colours(value=colour_map(3, 0.1, 1, 1, 0))
    )
    encoder = ResidualEncoder(base_resolution=8, widths=(4,), mean=0.5, std=0.25)
    seen: list[torch.Tensor] = []
    next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    Fcn(FcnConfig(0), encoder, 2).look([view], Settings(select="all"))
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], (100 / 255 + 0.1 - 0.5) / 0.25))


def test_colours_leave_gradients_alone() -> None:
    """An image painted with no change gives the gradients of the image itself."""
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=2, c_t=4.0), SmallEncoder(), 3)
    image = random_image(0, 16, 16)

    def gradients(images: Sequence[object]) -> list[torch.Tensor]:
        trace = model.look(images, Settings(select="all", depth=2))  # type: ignore[arg-type]
        loss = model.believe(trace, 2).square().sum() + trace.logit.sum()
        return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]

    same = Colours(np.eye(1, 2), np.eye(1, 2))
    plain, painted = gradients([image]), gradients([View(image, 4, 0, False, same)])
    assert len(plain) > 4
    torch.testing.assert_close(painted, plain, rtol=1e-5, atol=1e-6)
    other = gradients([View(image, 4, 0, False, Colours(value=np.array([[0.5, 0.2]])))])
    assert all(torch.isfinite(g).all() for g in other)
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(plain, other, strict=True))


def test_draws_follow_from_the_generator() -> None:
    image = ArrayPyramid(np.zeros((8, 8, 3), np.uint8))

    def draw(seed: int) -> list[tuple[object, ...]]:
        random = np.random.default_rng(seed)
        views = [random_view(image, 4, random, turn=True, jitter=0.1, hed=0.1) for _ in range(5)]
        return [(v.turns, v.mirror, v.colours.density.tolist(), v.colours.value.tolist()) for v in views]  # type: ignore[union-attr]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len({str(drawn) for drawn in draw(0)}) == 5


def test_strengths_bound_what_is_drawn() -> None:
    random = np.random.default_rng(0)
    maps = [random_colours(random, 1, jitter=0.1, hed=0).value for _ in range(300)]  # type: ignore[union-attr]
    contrast, brightness = np.array(maps)[:, 0].T
    assert 0.9 <= contrast.min() < 0.91
    assert 1.09 < contrast.max() <= 1.1
    assert -0.05 <= brightness.min() < -0.045
    assert 0.045 < brightness.max() <= 0.05
    assert pytest.approx(np.deg2rad(4.5)) == HUE * 0.05
    with pytest.raises(ConfigError, match=r"hed changes stains.*not 1; set hed=0"):
        random_colours(random, 1, jitter=0, hed=0.1)
