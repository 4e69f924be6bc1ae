"""A cell seen in its parent's patch: the right pixels, in the right place, and nothing read for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyrtrav.context import ParentContext
from pyrtrav.encoders import Encoder, build_encoder
from pyrtrav.encoders.multigrid.layers import gather
from pyrtrav.encoders.resize import centred
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid, Region
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.model_file import EncoderSpec, ModelCard, save_model
from pyrtrav.occlusion import check_coverable
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.training.vector_cache import keep_vectors
from tests.samples import SLIDE
from tests.small import SmallEncoder, random_image

ALL = Settings("all", depth=2, share_cells=False)
OPTIONS = {"channels": 1, "base_resolution": 32, "width": 0.02}


def make_model(network: str = "MG-6", *, channels: int = 1, samples: int = 2) -> TopDown:
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=2, share_cells=False, context="parent", samples=samples, c_t=6.0)
    encoder = build_encoder("multigrid", network=network, **(OPTIONS | {"channels": channels}))
    return TopDown(config, encoder, 3).eval()


def read(image: ArrayPyramid, region: Region, size: int) -> Tensor:
    return torch.from_numpy(image.read(region, size).pixels).permute(2, 0, 1)


def seen_around(image: ArrayPyramid, region: Region, parent: Region | None, size: int) -> Tensor:
    """The square of twice the side, read from the image, and 255 where the parent (or the patch itself) shows it."""
    x, y, side = region.x - region.width / 2, region.y - region.height / 2, 2 * region.width
    pixels = read(image, Region(x, y, side, side), size)
    known, shown = torch.zeros(1, size, size, dtype=torch.uint8), parent or region
    centre = (np.arange(size) + 0.5) * side / size
    rows = (shown.y < y + centre) & (y + centre < shown.bottom)
    columns = (shown.x < x + centre) & (x + centre < shown.right)
    known[0, np.ix_(rows, columns)[0], np.ix_(rows, columns)[1]] = 255
    return torch.cat([pixels * (known > 0), known])


@pytest.mark.parametrize("cells", [2, 3, 5])
def test_context_is_what_the_image_holds_around_a_cell_as_far_as_the_parent_shows_it(cells: int) -> None:
    image, grid, size = random_image(0, 64, 64), Grid(cells, 0.5), 16
    root = Region(0, 0, 64, 64)
    context = ParentContext(grid, size)
    around = context.around(read(image, root, size)[None], np.array([-1]), np.array([0]))
    expected = seen_around(image, root, None, size)
    assert torch.equal(around[0, 1], expected[1])
    assert int((around[0, 0].int() - expected[0].int()).abs().max()) <= 1  # means of rounded means
    context.keep(np.array([0]))
    regions = [grid.lattice_region(root, 1, cell % cells, cell // cells) for cell in range(cells**2)]
    patches = torch.stack([read(image, region, size) for region in regions])
    parent, cell = np.zeros(cells**2, np.int64), np.arange(cells**2)
    for pixels, whole in ((patches, 255), (patches.double() / 255, 1)):
        if whole == 1:
            context = ParentContext(grid, size)
            context.around(read(image, root, size)[None].double() / 255, np.array([-1]), np.array([0]))
            context.keep(np.array([0]))
        found = context.around(pixels, parent, cell)
        for region, one in zip(regions, found, strict=True):
            torch.testing.assert_close(one.double() / whole, seen_around(image, region, root, size).double() / 255)


def slow_gather(grids: list[Tensor]) -> list[Tensor]:
    """Each position's channels by its own place: 0 is the middle of the patch, a finest position has side 1."""
    middles = [g.shape[-1] / 2 for g in grids]
    made = []
    for own, grid in enumerate(grids):
        columns = []
        for other in range(max(own - 1, 0), min(own + 2, len(grids))):
            source, times = grids[other], 2.0 ** (own - other)
            part = torch.zeros(source.shape[1], *grid.shape[-2:])
            for row in range(grid.shape[-2]):
                for column in range(grid.shape[-1]):
                    y = int(np.floor((row - middles[own]) * times + middles[other]))
                    x = int(np.floor((column - middles[own]) * times + middles[other]))
                    step = 2 if other < own else 1
                    if 0 <= y < source.shape[-2] and 0 <= x < source.shape[-1]:
                        part[:, row, column] = source[0, :, y : y + step, x : x + step].amax((1, 2))
            columns.append(part)
        made.append(torch.cat(columns)[None])
    return made


def test_grids_meet_in_their_middles() -> None:
    torch.manual_seed(0)
    grids = [torch.rand(1, 2, 8, 8), torch.rand(1, 3, 8, 8), torch.rand(1, 1, 4, 4)]
    for found, expected in zip(gather(grids), slow_gather(grids), strict=True):
        assert torch.equal(found, expected)


def test_half_a_position_is_between_two() -> None:
    two = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert torch.equal(centred(two, 1, 1), torch.tensor([[[[3.0]]]]))
    assert torch.equal(centred(torch.ones(1, 1, 1, 1), 2, 2), torch.full((1, 1, 2, 2), 0.25))
    assert torch.equal(centred(two, 2, 2), two)
    one = centred(two, 2, 1)  # rows as they are
    assert torch.equal(one, torch.tensor([[[[1.5], [4.5]]]]))


def even_pixels(seed: int, *shape: int) -> np.ndarray:
    """Of squares whose means are whole: then it is no matter in how many steps they are taken."""
    *before, height, width = shape
    small = np.random.default_rng(seed).integers(0, 16, (*before, height // 4, width // 4), np.uint8) * 16
    return small.repeat(4, -2).repeat(4, -1)


def parents_of(trace: Trace) -> dict[int, tuple[int, int]]:
    on = np.flatnonzero(trace.on)
    return {int(trace.child[e]): (int(trace.parent[e]), int(trace.cell[e])) for e in on}


def expected_vector(model: TopDown, image: ArrayPyramid, trace: Trace, fixation: int) -> Tensor:
    """The fixation's alone, from patches that are read for it."""
    encoder, region = model.encoder, Region(*trace.region[fixation].tolist())
    patch = read(image, region, encoder.base_resolution)[None]
    above = parents_of(trace).get(fixation)
    parent = Region(*trace.region[above[0]].tolist()) if above else None
    around = seen_around(image, region, parent, encoder.base_resolution)[None]
    return encoder(patch, around).vector[0]


BY_DEPTH, BY_ROUND = replace(ALL, select="topk", k=2), replace(ALL, budget=9, beam=3)


@pytest.mark.parametrize(
    ("network", "settings"),
    [("MG-6", BY_DEPTH), ("MG-6", BY_ROUND), ("R-PMG-16", BY_ROUND), ("R-PMG-30-SEG", replace(BY_DEPTH, depth=1))],
)
def test_a_vector_is_that_of_a_patch_in_its_parents(network: str, settings: Settings) -> None:
    model = make_model(network)
    images = [ArrayPyramid(even_pixels(1, *shape), channels=1) for shape in ((128, 128), (96, 128))]
    with torch.inference_mode():
        trace = model.look(images, settings)
        assert trace.depth.max() == settings.depth
        for fixation in range(len(trace.image)):
            one = expected_vector(model, images[trace.image[fixation]], trace, fixation)
            torch.testing.assert_close(trace.vector[fixation], one, atol=1e-4, rtol=0)


def test_what_a_parent_shows_matters_and_images_do_not_touch() -> None:
    model = make_model()
    image, other = random_image(1, 128, 128), random_image(2, 128, 128)
    with torch.inference_mode():
        alone = model.look([image], ALL)
        both = model.look([other, image], replace(ALL, encode_batch=7))
    own = both.fixations_of(1)
    assert np.array_equal(both.region[own], alone.region)
    torch.testing.assert_close(both.vector[torch.from_numpy(own)], alone.vector, atol=1e-5, rtol=1e-4)
    # Two ways to one place: the same patch, another vector.
    places, count = np.unique(alone.fixation_place(), return_counts=True)
    twice = np.flatnonzero(alone.fixation_place() == places[count > 1][0])
    assert float((alone.vector[int(twice[0])] - alone.vector[int(twice[1])]).abs().max()) > 1e-3


def test_nothing_more_is_decoded_of_a_slide() -> None:
    spent = []
    for context in ("none", "parent"):
        torch.manual_seed(0)
        config = TopDownConfig(max_depth=2, share_cells=False, context=context)  # type: ignore[arg-type]
        model = TopDown(config, build_encoder("multigrid", **(OPTIONS | {"channels": 3})), 2).eval()
        shared_cache().clear()
        with open_pyramid(SLIDE, channels=3) as slide, torch.inference_mode():
            trace = model.look([slide], ALL)
            spent.append((slide.cost.tiles_decoded, slide.cost.bytes_read, slide.cost.pixels_decoded))
            assert len(trace.image) == 1 + 9 + 81
    assert spent[0] == spent[1]


def test_a_stack_in_memory_is_seen_as_pyramids_are_and_trains() -> None:
    pixels = even_pixels(0, 2, 128, 128)
    model, labels = make_model().double(), torch.tensor([0, 2])
    found = []
    for images in (
        [ArrayPyramid(p, channels=1) for p in pixels],
        ImageStack(torch.from_numpy(pixels)[:, None].double()),
    ):

        def draws(trace, parents, cell):  # type: ignore[no-untyped-def]
            place = trace.fixation_place()[parents] * 16 + cell
            return np.array([np.random.default_rng(number).random() + 0.2 for number in place.tolist()])

        loss, _, trace = LearningRule(model.config, 2)(model, images, labels, draws)
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((trace, [weight.grad.clone() for weight in model.encoder.parameters() if weight.grad is not None]))
    (ours, gradient), (theirs, expected) = found
    assert np.array_equal(ours.region, theirs.region)
    assert ours.depth.max() == 2
    torch.testing.assert_close(ours.vector, theirs.vector)
    assert len(gradient) == len(list(model.encoder.parameters()))
    for a, b in zip(gradient, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_go_back_into_the_parents_pixels() -> None:
    model = make_model().double()
    pixels = 255 * torch.rand(1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def last_vector(values: Tensor) -> Tensor:
        trace = model.look(ImageStack(values[None]), Settings("all", depth=1, share_cells=False))
        return trace.vector[1].square().sum()  # the upper left cell

    wanted = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(last_vector(wanted), wanted)
    gradient[:, :64, :64] = 0  # the cell itself
    assert not gradient[:, 96:].any()
    assert not gradient[:, :, 96:].any()  # beyond its context
    place, step = np.unravel_index(int(gradient.abs().argmax()), gradient.shape), 1e-4
    moved = [pixels.clone(), pixels.clone()]
    moved[0][place] += step
    moved[1][place] -= step
    with torch.no_grad():
        slope = (last_vector(moved[0]) - last_vector(moved[1])) / (2 * step)
    assert abs(float(slope)) > 1e-9
    assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-4)


def test_multiply_accumulates_are_counted() -> None:
    model = make_model()
    patch, around = torch.zeros(1, 1, 32, 32), torch.zeros(1, 2, 32, 32)
    counts = []
    for inputs in ((patch,), (patch, around)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encoder(*inputs)
        counts.append(counter.get_total_flops() // 2)
    assert model.module_macs()["encoder"] == counts[1] > counts[0]


def test_a_model_file_keeps_it_and_explains_what_it_classified(tmp_path: Path) -> None:
    model, options = make_model(channels=3), OPTIONS | {"channels": 3}
    config = {"max_depth": 2, "share_cells": False, "context": "parent", "c_t": 6.0}
    card = ModelCard(
        "topdown", EncoderSpec("multigrid", options), config, ("a", "b", "c"), 3, max_depth=2,
        selection={"select": "topk", "k": 2},
    )  # fmt: skip
    save_model(tmp_path / "model.safetensors", model, card)
    predictor = Predictor(tmp_path / "model.safetensors", device="cpu")
    assert not predictor.settings().share_cells
    (classified,) = predictor.predict([SLIDE])
    (explained,) = predictor.predict([SLIDE], predictor.settings(), contributions=True)
    assert classified.record["prediction"] == explained.record["prediction"]
    assert explained.tree is not None
    assert len(explained.tree.nodes) == 1 + 2 + 4
    with open_pyramid(SLIDE, channels=3) as slide, torch.inference_mode():
        trace = model.look([slide], predictor.settings())
        logits = model.believe(trace, 2)[0]
    probabilities = list(classified.record["prediction"]["probabilities"].values())
    torch.testing.assert_close(torch.tensor(probabilities), logits.softmax(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("encoder", "options", "words"),
    [
        ("residual", {}, "needs an encoder with coarser grids"),
        ("multigrid", {"network": "VGG-6"}, "needs an encoder with coarser grids"),
        ("multigrid", {"cells": 4}, "begin at whole pixels"),
        ("multigrid", {"cells": 3, "side": 0.25}, "half their parent's side"),
    ],
)
def test_what_has_no_context_is_refused(encoder: str, options: dict[str, object], words: str) -> None:
    network = {name: options.pop(name) for name in ("network",) if name in options}
    config = TopDownConfig(share_cells=False, context="parent", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        TopDown(config, build_encoder(encoder, base_resolution=64, **network), 2)


def test_options_that_contradict_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="share_cells=false"):
        TopDownConfig(context="parent")
    with pytest.raises(ConfigError, match="share_cells=false"):
        make_model().look([random_image(0, 128, 128)], Settings("all", depth=1))
    with pytest.raises(ConfigError, match="keep_vectors=0"):
        keep_vectors(make_model(), 1 << 20)
    with pytest.raises(ConfigError, match="context=none"):
        check_coverable(make_model())
    with pytest.raises(ConfigError, match="heeds nothing around"):
        SmallEncoder()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))


def test_encoders_say_whether_they_take_context() -> None:
    encoders: list[Encoder] = [build_encoder("multigrid"), build_encoder("multigrid", network="RES-12")]
    assert [encoder.takes_context for encoder in encoders] == [True, False]
    assert all(isinstance(encoder, nn.Module) for encoder in encoders)
