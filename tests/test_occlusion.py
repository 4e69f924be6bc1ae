"""What noise over a place does to a prediction, look by look; where was looked at stays as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyrtrav.encoders import build_encoder
from pyrtrav.errors import ConfigError, TreeError
from pyrtrav.explain.panel import Sizes
from pyrtrav.geometry import Region
from pyrtrav.methods import METHODS
from pyrtrav.methods.topdown import TopDown, TopDownConfig
from pyrtrav.occlusion import pixels_before, sensitivities
from pyrtrav.pyramid import open_pyramid
from pyrtrav.selection import Settings
from pyrtrav.tensor_image import InMemory
from pyrtrav.tree import ParseTree
from tests.program import run_program
from tests.samples import TISSUE
from tests.small import SmallEncoder, random_image
from tests.trees import as_tree, look


def log_odds(logits: torch.Tensor, label: int) -> float:
    probability = torch.softmax(logits.double(), 1)[0, label]
    return float(torch.log(probability / (1 - probability)))


@given(
    start=st.floats(-100, 100),
    length=st.floats(1, 500),
    size=st.integers(1, 20),
    first=st.floats(-200, 700),
    side=st.floats(0, 300),
)
def test_a_pixel_is_covered_where_its_centre_is(
    start: float, length: float, size: int, first: float, side: float
) -> None:
    pixel = length / size
    centres = start + (np.arange(size) + 0.5) * pixel
    found = np.zeros(size, np.bool_)
    edges = pixels_before(np.array([start]), np.array([length]), size, np.array([first, first + side]))
    found[edges[0, 0] : edges[0, 1]] = True
    sure = np.minimum(abs(centres - first), abs(centres - first - side)) > 1e-6 * pixel + 1e-6
    assert (found == ((centres >= first) & (centres < first + side)))[sure].all()


def test_of_a_glance_each_square_is_covered_by_itself() -> None:
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=2), SmallEncoder(), 3).eval()
    image = random_image(0)
    with torch.inference_mode():
        trace = model.look([image], Settings("all", depth=0))
        found = sensitivities(model, image, trace, 0, 1, squares=2, seed=3)
        patch = torch.from_numpy(image.read(image.bounds, 4).pixels[..., 0] / 255.0).float()[None, None]
        whole = log_odds(model.classify(model.encoder(patch).vector), 1)
        generator = torch.Generator().manual_seed(3)
        for row in range(2):
            for column in range(2):
                noisy = patch.clone()
                noisy[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = torch.rand(2, 2, generator=generator)
                logits = model.classify(model.encoder(noisy).vector)
                there = log_odds(logits, 1)
                assert found[0, row, column] == pytest.approx(whole - there, abs=1e-5)
    assert abs(found).min() > 0


def test_every_look_that_shows_a_place_is_covered_there() -> None:
    """A square as large as the only deep look is also a quarter of the glance."""
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=1), SmallEncoder(), 3).eval()
    image = random_image(0)
    with torch.inference_mode():
        trace = model.look([image], Settings("topk", k=1, depth=1))
        found = sensitivities(model, image, trace, 1, 0, squares=1, seed=0)[1, 0, 0]
        glance, cell = model.patches([image], trace)
        x, y, side, _ = (trace.region[1] / 4).astype(int).tolist()
        assert side == 2
        generator = torch.Generator().manual_seed(0)
        torch.rand(1, 4, 4, generator=generator), torch.rand(1, 4, 4, generator=generator)  # over the glance
        glance[:, y : y + 2, x : x + 2] = torch.rand(1, 2, 2, generator=generator)
        cell[:] = torch.rand(1, 4, 4, generator=generator)
        vectors = model.encoder(torch.stack([glance, cell])).vector
        before, after = (log_odds(model.believe(one, 1), 0) for one in (trace, trace.with_vectors(vectors)))
    assert found == pytest.approx(before - after, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_decoded_again_whatever_looked(method: str) -> None:
    path: Path = TISSUE / "val" / "lesion" / "003.tif"
    torch.manual_seed(0)
    encoder = build_encoder("residual", base_resolution=32, widths=[4, 8], channels=3)
    config = METHODS[method].Config(**({"depth": 2} if method == "mil" else {}))
    model = METHODS[method].build(config, encoder, 2).eval()
    with torch.inference_mode(), open_pyramid(path, channels=3) as image:
        settings = Settings("topk", k=2, depth=2) if "select" in METHODS[method].supports else Settings("all", depth=2)
        trace = model.look([image], settings)
        decoded = image.cost.tiles_decoded
        if method == "fcn":
            with pytest.raises(ConfigError, match="takes in the whole image"):
                sensitivities(model, image, trace, 0, 0)
            return
        vectors = model.encode_looks(model.patches([image], trace), trace.depth)
        torch.testing.assert_close(vectors, trace.vector)
        depth = model.depth_of(image, settings)
        found = sensitivities(model, image, trace, depth, 0, squares=2)
        again = sensitivities(model, image, trace, depth, 0, squares=2)
        assert image.cost.tiles_decoded == decoded > 0
    assert found.shape == (len(trace.image), 2, 2)
    assert np.array_equal(found, again)
    assert abs(found).max() > 0


def test_no_squares_are_refused() -> None:
    torch.manual_seed(0)
    model, image = TopDown(TopDownConfig(max_depth=1), SmallEncoder(), 3).eval(), random_image(0)
    trace = model.look([image], Settings("all", depth=0))
    with pytest.raises(ConfigError, match="at least 1"):
        sensitivities(model, image, trace, 0, 0, squares=0)


def test_a_single_class_has_nothing_to_lose() -> None:
    torch.manual_seed(0)
    model, image = TopDown(TopDownConfig(max_depth=1), SmallEncoder(), 1).eval(), random_image(0)
    trace = model.look([image], Settings("all", depth=0))
    with pytest.raises(ConfigError, match="single class"):
        sensitivities(model, image, trace, 0, 0)


def test_the_command_draws_it_and_draws_it_again_from_the_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = TISSUE / "val" / "lesion" / "003.tif"
    words = ["--occlusion", tmp_path / "o.png"]
    done = run_program(capsys, monkeypatch, "explain", image, "--out", tmp_path / "t.json", *words)
    assert done.code == 0, done.err
    tree = ParseTree.load(tmp_path / "t.json")
    looks = np.array(tree.record["occlusion"]["looks"])
    assert looks.shape == (len(tree.nodes), 8, 8)
    with Image.open(tmp_path / "o.png") as picture:
        first = np.asarray(picture.convert("RGB"))
    done = run_program(capsys, monkeypatch, "explain", "--tree", tmp_path / "t.json", *words)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "o.png") as picture:
        assert np.array_equal(first, picture.convert("RGB"))
    # The strongest square that is seen is yellow at its place; the picture is gray where nothing depends.
    deepest = [node for node in tree.nodes if node.depth == 2]
    best = max(deepest, key=lambda node: abs(looks[node.id]).max())
    row, column = np.unravel_index(abs(looks[best.id]).argmax(), (8, 8))
    side = best.region.width / 8
    assert tree.bounds.width == tree.bounds.height == 1024  # so it is drawn pixel by pixel
    sizes = Sizes(1024 / 1200)
    x = sizes.margin + best.region.x + (column + 0.5) * side
    y = sizes.header + best.region.y + (row + 0.5) * side
    assert np.ptp(first[round(y), round(x)].astype(int)) > 40


DAMAGES = {
    "a look is missing": [[[1.0, 2.0], [3.0, 4.0]]] * 2,
    "a row is short": [[[1.0, 2.0], [3.0, 4.0]]] * 2 + [[[1.0], [3.0, 4.0]]],
    "a look is empty": [[[1.0, 2.0], [3.0, 4.0]]] * 2 + [[]],
    "a number is none": [[[1.0, 2.0], [3.0, 4.0]]] * 2 + [[[1.0, float("nan")], [3.0, 4.0]]],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_occlusion_is_no_part_of_a_tree(damage: str) -> None:
    pyramid = InMemory(np.zeros((64, 64, 3), np.uint8), path="a.png", background=(255, 255, 255))
    whole = as_tree(pyramid, [look(i, 0, Region(0, 0, 64, 64)) for i in range(3)]).to_dict()
    whole["occlusion"] = {"squares": 2, "seed": 0, "looks": [[[1.0, 2.0], [3.0, 4.0]]] * 3}
    assert ParseTree.from_dict(whole).record["occlusion"] == whole["occlusion"]
    whole["occlusion"]["looks"] = DAMAGES[damage]
    with pytest.raises(TreeError, match="occlusion of"):
        ParseTree.from_dict(whole)


def test_a_tree_without_an_occlusion_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = TISSUE / "val" / "lesion" / "003.tif"
    assert run_program(capsys, monkeypatch, "explain", image, "--out", tmp_path / "t.json").code == 0
    words = ["--tree", tmp_path / "t.json", "--occlusion", tmp_path / "o.png"]
    done = run_program(capsys, monkeypatch, "explain", *words)
    assert done.code == 2
    assert "make it again with --occlusion" in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "o.png").exists()


def test_an_encoder_is_drawn_without_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_program(capsys, monkeypatch, "explain", "--encoder", tmp_path / "e.png").code == 0
    assert (tmp_path / "e.png").exists()
    done = run_program(capsys, monkeypatch, "explain", TISSUE, "--encoder", tmp_path / "f.png")
    assert done.code == 2
    assert "--encoder is of a model alone" in " ".join(done.err.replace("│", " ").split())
    for words in (["--overlay", tmp_path / "o.png"], ["--stop-at", "0.9"], ["--json"], ["--depth", "1"]):
        done = run_program(capsys, monkeypatch, "explain", "--encoder", tmp_path / "f.png", *words)
        assert done.code == 2, words
        assert words[0].lstrip("-") in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.png"]
