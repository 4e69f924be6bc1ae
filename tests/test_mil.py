"""Attention over all tiles: against the paper's formulas written out, and what streaming and chunks must not change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrtrav.encoders import count_macs
from pyrtrav.errors import ConfigError
from pyrtrav.explain import draw_overlay
from pyrtrav.geometry import Region
from pyrtrav.methods.mil import BagCrossEntropy, Mil, MilConfig, softmax_by_image
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.small import SmallEncoder, random_image
from tests.test_memory import peak_of, write_sparse_pyramid

EVERYTHING = Settings(select="all")


def make(**options: Any) -> Mil:
    torch.manual_seed(0)
    return Mil(MilConfig(**{"depth": 2, **options}), SmallEncoder(), 3).double().eval()


@pytest.fixture
def images() -> list[ArrayPyramid]:
    """Of 16, 4 x 2 and 1 tiles."""
    return [random_image(0), random_image(1, 16, 8), random_image(2, 4, 3)]


def written_out(model: Mil, image: ArrayPyramid) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and weights of one image by (7) and (9), tile by tile."""
    side = 16 // 4 if image.width > 4 else 4
    top = (image.height - max(image.width, image.height)) / 2
    regions = [
        Region(x, top + y, side, side)
        for y in range(0, max(image.width, 4), side)
        for x in range(0, image.width, side)
        if Region(x, top + y, side, side).intersects(image.bounds)
    ]
    vectors, exponents = [], []
    for region in regions:
        patch = torch.from_numpy(image.read(region, 4).pixels).permute(2, 0, 1)[None].double() / 255
        h = model.encoder(patch).vector[0]
        v, u, w = model.attention.content.weight, model.attention.gate.weight, model.attention.weigh.weight[0]
        exponents.append(torch.exp(w @ (torch.tanh(v @ h) * torch.sigmoid(u @ h))))
        vectors.append(h)
    weights = torch.stack(exponents) / torch.stack(exponents).sum()
    z = (weights[:, None] * torch.stack(vectors)).sum(0)
    return model.classify.weight @ z + model.classify.bias, weights


def test_it_is_the_paper_s_formula(images: list[ArrayPyramid]) -> None:
    model = make()
    with torch.no_grad():
        trace = model.look(images, EVERYTHING)
        logits = model.believe(trace, 0)
        for number, image in enumerate(images):
            wanted, weights = written_out(model, image)
            torch.testing.assert_close(logits[number], wanted)
            scores = [node.score for node in model.nodes(trace, number)]
            torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), weights)
    assert np.bincount(trace.image).tolist() == [16, 8, 1]


def test_attention_sums_to_one(images: list[ArrayPyramid]) -> None:
    model = make()
    trace = model.look(images, EVERYTHING)
    for number in range(3):
        nodes = model.nodes(trace, number)
        assert sum(node.score for node in nodes) == pytest.approx(1, abs=1e-6)
        assert all(node.parents == () and node.cells == () for node in nodes)


def test_weights_of_large_exponents_are_finite() -> None:
    logit = torch.tensor([900.0, 899.0, -900.0, 5.0], dtype=torch.float64)
    weight = softmax_by_image(logit, torch.tensor([0, 0, 2, 2]), 3)
    wanted = torch.cat([torch.softmax(logit[:2], 0), torch.softmax(logit[2:], 0)])
    torch.testing.assert_close(weight, wanted)


def test_the_gradient_of_the_weights_is_that_of_softmax() -> None:
    logit = torch.randn(7, dtype=torch.float64, requires_grad=True)
    image = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda x: softmax_by_image(x, image, 2), (logit,))


def test_the_order_of_tiles_does_not_matter(images: list[ArrayPyramid]) -> None:
    model = make()
    with torch.no_grad():
        trace = model.look(images, EVERYTHING)
        order = np.random.default_rng(0).permutation(len(trace.image))
        mixed = Trace(trace.roots, trace.device)
        mixed.add_fixations(
            trace.image[order],
            trace.depth[order],
            0,
            trace.column[order],
            trace.row[order],
            trace.region[order],
            trace.vector[torch.from_numpy(order)],
        )
        torch.testing.assert_close(model.believe(mixed, 0), model.believe(trace, 0))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_streaming_equals_all_at_once(images: list[ArrayPyramid], count: int) -> None:
    model = make()
    with torch.no_grad():
        whole = model.look(images, EVERYTHING)
        chunks = model.look(images, Settings(select="all", encode_batch=count))
    assert (chunks.region == whole.region).all()
    torch.testing.assert_close(chunks.vector, whole.vector)


def gradients(model: Mil, images: list[ArrayPyramid]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    loss, _, _ = BagCrossEntropy()(model, images, torch.tensor([0, 1, 2]), generator)
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_the_gradient_through_chunks_is_that_of_all_tiles_at_once(images: list[ArrayPyramid]) -> None:
    wanted = gradients(make(), images)
    assert all(gradient.abs().sum() > 0 for gradient in wanted.values())
    for count in (1, 5):
        found = gradients(make(train_batch=count), images)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)


def saved_bytes(model: Mil, image: ArrayPyramid) -> int:
    """What a step keeps for the gradient."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        BagCrossEntropy()(model, [image], torch.tensor([0]), torch.Generator())
    return sum(kept.values())


def test_a_step_keeps_vectors_and_pixels_but_no_activations() -> None:
    image = random_image(0, 128, 128)
    deep = make(depth=5, tiles=None, train_batch=64)
    plain = make(depth=5, tiles=None, train_batch=1024)
    vectors = 1024 * (5 * 8 + 128 * 8 * 4)  # an instance, and the attention's hidden units
    assert saved_bytes(deep, image) < 1.5 * vectors
    assert saved_bytes(plain, image) - saved_bytes(deep, image) > 1024 * 5 * 4 * 8


def test_a_step_draws_tiles_and_the_seed_says_which(images: list[ArrayPyramid]) -> None:
    model = make(tiles=5)
    seen = [model.look_at_some(images, torch.Generator().manual_seed(seed)).region for seed in (0, 0, 1)]
    assert (seen[0] == seen[1]).all()
    assert not np.array_equal(seen[0], seen[2])
    assert len(seen[0]) == 5 + 5 + 1
    assert len(np.unique(seen[0][:5], axis=0)) == 5
    # Every tile has its turn, about as often as any other.
    generator = torch.Generator().manual_seed(0)
    drawn = np.concatenate([(t := model.look_at_some(images[:1], generator)).row * 4 + t.column for _ in range(200)])
    counts = np.bincount(drawn, minlength=16)
    assert counts.min() > 62.5 * 0.6
    assert counts.max() < 62.5 * 1.4


def test_cost_is_counted_as_torch_counts_it(images: list[ArrayPyramid]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for model in (make(), make(hidden=7)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trace = model.look(images, EVERYTHING)
            model.believe(trace, 0)
        assert sum(model.macs(trace)) == counter.get_total_flops() // 2
    tile = count_macs(model.encoder, torch.zeros(1, 1, 4, 4, dtype=torch.float64)) + 5 * 7 + 2 * 7 * 128 + 128
    assert model.macs(trace) == [16 * tile + 21, 8 * tile + 21, tile + 21]


def test_background_is_left_out_when_asked() -> None:
    pixels = np.full((64, 64), 250, np.uint8)
    pixels[20:40, 8:24] = 30
    image = ArrayPyramid(pixels, channels=1)
    every, some = (make(depth=3, skip_background=share) for share in (None, 1.0))
    assert len(every.look([image], EVERYTHING).image) == 64
    trace = some.look([image], EVERYTHING)
    # Tiles of 8 pixels: columns 1 and 2, rows 2 to 4.
    assert sorted(zip(trace.column.tolist(), trace.row.tolist(), strict=True)) == [
        (column, row) for column in (1, 2) for row in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "depth must be 0"),
        ({"tiles": 0}, "tiles must be 1"),
        ({"skip_background": 0.0}, "skip_background must be above 0"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MilConfig(**options)


def test_an_unreadable_image_leaves_the_others(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:-900])
    opened = [open_pyramid(tmp_path / name, channels=1) for name in ("bad.png", "good.png")]
    for share in (None, 0.9):
        model = make(skip_background=share)
        with torch.no_grad():
            trace = model.look(opened, EVERYTHING)
            assert [error is None for error in trace.errors] == [False, True]
            assert (trace.image == 1).all()
            logits = model.believe(trace, 0)
            torch.testing.assert_close(logits[1], model.believe(model.look(opened[1:], EVERYTHING), 0)[0])
        assert not logits[0].any()


def test_the_thumbnail_that_finds_the_background_is_a_part_of_reading(tmp_path: Path) -> None:
    """Of an image that is damaged nothing but it is read."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:-900])
    with open_pyramid(tmp_path / "bad.png", channels=1) as image:
        trace = make(skip_background=0.9).look([image], EVERYTHING)
    assert trace.seconds["read"] > 0
    assert trace.seconds["encode"] == 0


def marked_images(folder: Path, count: int, seed: int) -> None:
    """64 tiles of noise; in images of the class `marked` one of them holds a dark square."""
    random = np.random.default_rng(seed)
    for label in ("marked", "plain"):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(150, 255, (128, 128), np.uint8)
            if label == "marked":
                x, y = random.integers(0, 8, 2) * 16 + 4
                pixels[y : y + 8, x : x + 8] = 0
            Image.fromarray(pixels).save(folder / label / f"{i}.png")


def test_it_learns_what_one_tile_says_and_attention_finds_it(tmp_path: Path) -> None:
    for number, (split, count) in enumerate({"train": 16, "val": 10}.items()):
        marked_images(tmp_path / "data" / split, count, number)
    dataset = load_dataset(tmp_path / "data")
    options = ["base_resolution=16", "channels=1", "widths=[4,8]", "depth=3", "tiles=64", "batch_size=8", "epochs=8"]
    card, config = plan_training(dataset, method="mil", assignments=[*options, "lr=0.01", "validate_every=8"])
    path = Trainer(dataset, card, config, tmp_path / "run", device="cpu").run()
    predictor = Predictor(path, device="cpu")
    assert predictor.card.training["validation"]["accuracy"] >= 0.9
    for image in sorted((tmp_path / "data" / "val" / "marked").iterdir()):
        outcome = predictor.predict([image])[0]
        assert outcome.tree is not None
        best = max(outcome.tree.nodes, key=lambda node: node.score).region
        dark = np.asarray(Image.open(image)) == 0
        assert dark[int(best.y) : int(best.bottom), int(best.x) : int(best.right)].any()
        assert outcome.record["cost"]["fixations"] == 64
    with open_pyramid(image, channels=1) as pyramid:
        assert draw_overlay(outcome.tree, pyramid).width > 600


CODE = """
import json, resource, sys
from pyrtrav.predict import Predictor
p = Predictor(sys.argv[2], device="cpu")
record = p.predict([sys.argv[1]])[0].record
print(json.dumps([record["cost"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def test_memory_follows_neither_the_image_s_size_nor_the_number_of_tiles(tmp_path: Path) -> None:
    """Of 16 times the tiles and 100 times the pixels only vectors and places are kept."""
    peaks = []
    for depth, side in ((4, 10_000), (6, 100_000)):
        path, model = tmp_path / f"{side}.tif", tmp_path / f"{depth}.safetensors"
        write_sparse_pyramid(path, side)
        encoder = EncoderSpec("residual", {"base_resolution": 16, "widths": [4, 8]})
        card = ModelCard("mil", encoder, {"depth": depth}, ("a", "b"), 3, selection={"select": "all"})
        save_model(model, build_model(card), card)
        cost, peak = peak_of(CODE, path, model)
        assert cost["fixations"] == 4**depth
        peaks.append(peak)
    assert peaks[1] <= 1.10 * peaks[0], peaks
