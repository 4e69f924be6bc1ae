"""Glance and focus: where it looks, what it believes, and what it costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyrtrav.errors import ConfigError
from pyrtrav.methods.chain import chains
from pyrtrav.methods.gfnet import Gfnet, GfnetConfig
from pyrtrav.methods.gfnet.classifier import CascadedClassifier, RecurrentClassifier
from pyrtrav.methods.gfnet.places import Places, focus_side
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Select, Settings
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.tree import TREE_SCHEMA, check
from tests.samples import TISSUE
from tests.small import SmallEncoder, random_image
from tests.toy_images import make_images

IMAGES = [random_image(0, 150, 200), random_image(1, 64, 64), random_image(2, 300, 10)]


def small_model(config: GfnetConfig | None = None, seed: int = 0) -> Gfnet:
    """A model whose untrained policy has opinions."""
    torch.manual_seed(seed)
    model = Gfnet(config or GfnetConfig(looks=4, hidden=8, policy_hidden=8), SmallEncoder(), 3)
    for weight in model.propose.parameters():
        nn.init.normal_(weight, std=0.7)
    return model.eval()


def seeded(seed: int = 0, count: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


# Where it looks.


def test_looks_form_a_chain_of_full_resolution_inside_the_image() -> None:
    model = small_model()
    with torch.inference_mode():
        trace = model.look(IMAGES, Settings("sample", depth=3), seeded())
    for number, image in enumerate(IMAGES):
        nodes, bounds = model.nodes(trace, number), image.bounds
        assert [node.parents for node in nodes] == [(), (0,), (1,), (2,)]
        assert nodes[0].region == trace.roots[number]
        for node in nodes[1:]:
            assert (node.region.width, node.region.height, node.downsample) == (4.0, 4.0, 1.0)
            assert bounds.x <= node.region.x <= bounds.right - 4
            assert bounds.y <= node.region.y <= bounds.bottom - 4
            assert node.region.x.is_integer()
            assert node.region.y.is_integer()
        assert len({node.region for node in nodes}) == 4


def test_the_local_encoder_sees_the_stored_pixels() -> None:
    model, seen = small_model(), []
    model.local.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        trace = model.look(IMAGES[:1], Settings("sample", depth=3), seeded(count=1))
    whole = IMAGES[0].read_many([IMAGES[0].bounds], (150, 200)).pixels[0, :, :, 0]
    for patch, (x, y, *_) in zip(seen, trace.region[1:].astype(int).tolist(), strict=True):
        pixels = patch if patch.dtype == torch.uint8 else (patch * 255).round()
        np.testing.assert_array_equal(pixels[0, 0].numpy(), whole[y : y + 4, x : x + 4])


def test_only_the_tiles_of_its_looks_are_decoded() -> None:
    path = TISSUE / "val" / "lesion" / "003.tif"
    torch.manual_seed(0)
    card = ModelCard("gfnet", EncoderSpec("residual", {"widths": [4, 8]}), {"looks": 3}, ("a", "b"), 3)
    model = build_model(card).eval()
    with torch.inference_mode(), open_pyramid(path, channels=3) as image:
        assert image.tiles_total > 16
        model.look([image], Settings("all", depth=0))
        glance = image.cost.tiles_distinct
        model.look([image], Settings("all", depth=2))
        # A patch no larger than a tile touches four at most.
        assert glance < image.cost.tiles_distinct <= glance + 2 * 4


@pytest.mark.parametrize(
    "fewer",
    [Settings("all", depth=1), Settings("budget", depth=3, budget=2), Settings("all", depth=3, max_fixations=2)],
)
def test_fewer_looks_are_the_first_ones(fewer: Settings) -> None:
    model = small_model()
    with torch.inference_mode():
        whole, part = model.look(IMAGES, Settings("all", depth=3)), model.look(IMAGES, fewer)
        np.testing.assert_array_equal(part.region, whole.until(1).region)
        torch.testing.assert_close(model.believe(part, 1), model.believe(whole, 1))
        torch.testing.assert_close(model.believe(part, 3), model.believe(whole, 1))
        assert not torch.equal(model.believe(whole, 0), model.believe(whole, 1))


def regions(model: Gfnet, select: Select, seed: int = 0) -> np.ndarray:
    with torch.inference_mode():
        return model.look(IMAGES, Settings(select, depth=3), seeded(seed)).region


def test_selections() -> None:
    model = small_model()
    np.testing.assert_array_equal(regions(model, "all"), regions(model, "all", seed=5))
    for drawn in ("sample", "random"):
        np.testing.assert_array_equal(regions(model, drawn), regions(model, drawn))
        assert (regions(model, drawn) != regions(model, drawn, seed=5)).any()
    middle = regions(model, "centre")[3:]
    expected = {(73.0, 98.0), (30.0, 30.0), (148.0, 3.0)}
    assert {(x, y) for x, y, *_ in middle.tolist()} == expected


def test_random_places_cover_the_image_evenly() -> None:
    image = random_image(0, 400, 100)
    model = small_model(GfnetConfig(looks=201, hidden=4, policy_hidden=4))
    with torch.inference_mode():
        region = model.look([image], Settings("random", depth=200), seeded(count=1)).region[1:]
    for axis, most in ((0, 396), (1, 96)):
        share = np.histogram(region[:, axis], 4, (0, most))[0] / 200
        assert share == pytest.approx([0.25] * 4, abs=0.1)


def test_draws_are_gaussian_around_the_means() -> None:
    config = GfnetConfig(looks=2, hidden=4, policy_hidden=4, deviation=0.2)
    model, images = small_model(config), [IMAGES[0]] * 400
    with torch.inference_mode():
        _, rollout = model.follow(images, Settings("sample", depth=1), seeded(count=400))
        mean = model.propose.retrace(rollout.maps)[0][0, 0]
    drawn = (rollout.actions[0] - mean).numpy() / 0.2
    assert abs(drawn.mean(0)).max() < 0.15
    assert drawn.std(0) == pytest.approx([1.0, 1.0], abs=0.1)
    assert np.quantile(drawn, 0.9) == pytest.approx(norm.ppf(0.9), abs=0.15)


def test_how_large_a_patch_is() -> None:
    """4 patch pixels; the image's longest side is 200."""
    image = random_image(0, 200, 150)
    asked = {
        4.0: GfnetConfig(),
        12.0: GfnetConfig(downsample=3.0),
        50.0: GfnetConfig(halvings=2),
        16.0: GfnetConfig(downsample=4.0, halvings=20),
        200.0: GfnetConfig(downsample=1000.0),
        4.001: GfnetConfig(finest_mpp=2.0),
    }
    for side, config in asked.items():
        assert focus_side(config, image, 4) == pytest.approx(side, rel=1e-3)
    scaled = ArrayPyramid(np.zeros((150, 200), np.uint8), channels=1, mpp=0.5)
    assert focus_side(GfnetConfig(finest_mpp=2.0), scaled, 4) == 16.0
    assert focus_side(GfnetConfig(finest_mpp=0.1), scaled, 4) == 4.0


def test_actions_are_shares_of_the_glance_and_stay_in_the_image() -> None:
    places = Places.of(GfnetConfig(), [random_image(0, 104, 54)], 4)
    zero = np.zeros(1, np.int64)
    # The image is 104 x 54, in a glance of 104 x 104 that begins 25 above it; corners range over 100.
    for action, corner in (
        ((0.5, 0.5), (50, 25)),
        ((0.123, 0.3), (12, 5)),
        ((-0.3, 0.0), (0, 0)),
        ((2.0, 0.99), (100, 50)),
    ):
        assert places.at(zero, np.array([action])).tolist() == [[*map(float, corner), 4.0, 4.0]]


def test_images_in_memory_are_looked_at_too() -> None:
    model = small_model()
    pixels = torch.randint(0, 256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    files = [ArrayPyramid(each[0].byte().numpy(), channels=1) for each in pixels]
    with torch.inference_mode():
        found, expected = (model.look(images, Settings("all", depth=3)) for images in (ImageStack(pixels), files))
        np.testing.assert_array_equal(found.region, expected.region)
        # Files give whole numbers.
        torch.testing.assert_close(model.believe(found, 3), model.believe(expected, 3), atol=0.02, rtol=0)


# What it believes.


def test_the_recurrent_classifier_is_a_gru() -> None:
    torch.manual_seed(0)
    classifier, vectors = RecurrentClassifier(5, 7, 3), torch.randn(2, 4, 5)
    reference = nn.GRU(5, 7, batch_first=True)
    with torch.no_grad():
        for name, weight in classifier.remember.named_parameters():
            getattr(reference, f"{name}_l0").copy_(weight)
    torch.testing.assert_close(classifier(vectors), classifier.linear(reference(vectors)[0]))


def test_the_cascade_written_out() -> None:
    torch.manual_seed(0)
    classifier, vectors = CascadedClassifier(5, 3, 2), torch.randn(2, 3, 5)
    for look, linear in enumerate(classifier.linears):
        seen = torch.cat([vectors[:, i] for i in range(look + 1)], dim=1)
        torch.testing.assert_close(classifier(vectors)[:, look], seen @ linear.weight.T + linear.bias)


def test_a_contribution_is_what_a_skipped_look_takes_away() -> None:
    model = small_model()
    with torch.inference_mode():
        trace = model.look(IMAGES, Settings("all", depth=3))
        vectors = trace.vector[torch.from_numpy(trace.fixations_of(1))]

        def log_p(kept: list[int]) -> float:
            return float(torch.log_softmax(model.classify(vectors[kept][None])[0, -1].double(), 0)[2])

        expected = [log_p([0, 1, 2, 3]) - log_p(kept) for kept in ([0, 2, 3], [0, 1, 3], [0, 1, 2])]
        assert model.contributions(trace, 1, 3, 2) == [None, *map(pytest.approx, expected)]


@pytest.mark.parametrize("classifier", ["recurrent", "cascade"])
def test_multiply_accumulates_are_those_that_torch_counts(classifier: str) -> None:
    config = GfnetConfig(looks=4, hidden=8, policy_hidden=8, classifier=classifier)  # type: ignore[arg-type]
    model = small_model(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trace = model.look(IMAGES, Settings("all", depth=2))
        model.classify(model.seen(trace, chains(trace, 2)[1]))
    critic = 3 * 2 * 8
    assert sum(model.macs(trace)) == counter.get_total_flops() // 2 - critic
    assert len(set(model.macs(trace))) == 1
    assert model.macs(trace.until(0))[0] < model.macs(trace.until(1))[0] < model.macs(trace)[0]


def test_only_its_own_selections_are_taken(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(folder)
    for method, known, unknown in (("gfnet", "centre", "topk"), ("topdown", "topk", "centre")):
        card = plan_training(dataset, method=method, assignments=["base_resolution=16", "widths=[4,8]"])[0]
        save_model(tmp_path / method, build_model(card), replace(card, selection={"select": "all"}))
        predictor = Predictor(tmp_path / method, device="cpu")
        settings = predictor.settings(select=known, k=2 if known == "topk" else None)
        outcome = predictor.predict([folder / "train" / "dark" / "0.png"], settings)[0]
        assert outcome.tree is not None
        check(outcome.tree.to_dict(), TREE_SCHEMA, "tree")
        assert outcome.record["settings"]["select"] == known
        with pytest.raises(ConfigError, match=f"has no selection `{unknown}`; it has: .*`?{known}"):
            predictor.settings(select=unknown)
    with pytest.raises(ConfigError, match="has no option --tau"):
        Predictor(tmp_path / "gfnet", device="cpu").settings(tau=0.5)
