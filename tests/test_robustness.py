"""`pyrtrav evaluate --corruptions --attack NAME`: what is judged, what is said, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.methods import METHODS
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, load_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.robustness.attack import Attack
from pyrtrav.robustness.corruptions import CORRUPTIONS
from pyrtrav.robustness.judge import load, logits_of
from pyrtrav.robustness.options import make_plan
from pyrtrav.robustness.report import Plan, evaluate_robustness
from pyrtrav.training.held_out import limited, load_held_out
from pyrtrav.training.runs import run_over
from pyrtrav.tree import ROBUSTNESS_SCHEMA, check
from tests.program import run_program

CLASSES = ("dark", "light")
ENCODER = EncoderSpec("residual", {"base_resolution": 16, "widths": [4, 8]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images a class, of noise around a gray, in several sizes."""
    root = tmp_path_factory.mktemp("grays")
    random = np.random.default_rng(0)
    for label, level in zip(CLASSES, (110, 146), strict=True):
        (root / label).mkdir()
        for number, (width, height) in enumerate(((64, 64), (48, 64), (64, 33))):
            pixels = np.clip(random.normal(level, 10, (height, width, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def model_file(path: Path, method: str) -> Path:
    """An untrained model."""
    torch.manual_seed(0)
    depth = 2 if method == "topdown" else getattr(METHODS[method].Config(), "max_depth", 0)
    config: dict[str, Any] = {"max_depth": depth} if method == "topdown" else {}
    selection = {"select": "topk", "k": 2} if method == "topdown" else {"select": "all"}
    card = ModelCard(method, ENCODER, config, CLASSES, 3, max_depth=depth, selection=selection)
    save_model(path, build_model(card), card)
    return path


@pytest.fixture(params=METHODS)
def predictor(request: pytest.FixtureRequest, tmp_path: Path) -> Predictor:
    return Predictor(load_model(model_file(tmp_path / "model.safetensors", request.param)), device="cpu")


def test_in_memory_every_method_says_what_it_says_of_the_files(predictor: Predictor, folder: Path) -> None:
    held_out = load_held_out(folder, CLASSES, "all")
    settings = predictor.settings()
    expected = run_over(predictor, held_out.examples, settings).final
    loaded = [load(predictor, example.path, None) for example in held_out.examples]
    assert not any(image.reduced for image in loaded)
    with torch.inference_mode():
        logits = logits_of(predictor.model, [image.image(image.pixels) for image in loaded], settings)
    found = torch.softmax(logits.double(), 1).numpy()
    assert np.abs(found - expected).max() < 1e-4
    assert np.ptp(found[:, 0]) > 1e-6


def test_every_method_is_attacked(predictor: Predictor, folder: Path) -> None:
    held_out = limited(load_held_out(folder, CLASSES, "all"), 3, 0)
    plan = Plan(attack=Attack("pgd-paper", eps=(0.0, 8.0), steps=(1, 2)))
    report = evaluate_robustness(predictor, held_out, {}, plan)
    check(json.loads(json.dumps(report)), ROBUSTNESS_SCHEMA, "report")
    points = {(point["eps"], point["steps"]): point for point in report["attack"]["points"]}
    assert list(points) == [(0.0, 1), (0.0, 2), (8.0, 1), (8.0, 2)]
    for steps in (1, 2):
        assert points[0.0, steps]["accuracy"] == points[0.0, steps]["unrounded"] == report["clean"]
        assert points[8.0, steps]["accuracy"] <= report["clean"]
    assert report["corruptions"] is None


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Trained until it is right on the clean images, by their brightness: they differ in nothing else."""
    path = model_file(tmp_path_factory.mktemp("model") / "fcn.safetensors", "fcn")
    loaded = load_model(path)
    predictor = Predictor(loaded, device="cpu")
    examples = load_held_out(folder, CLASSES, "all").examples
    images = [load(predictor, example.path, None) for example in examples]
    labels = torch.tensor([example.label for example in examples])
    model = predictor.model
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(20):
        logits = logits_of(model, [image.image(image.pixels) for image in images], predictor.settings())
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    save_model(path, model, loaded.card)
    return path


def test_what_changes_brightness_deceives_a_model_of_brightness(sure: Path, folder: Path) -> None:
    predictor = Predictor(sure, device="cpu")
    held_out = load_held_out(folder, CLASSES, "all")
    plan = Plan(corruptions=True, attack=Attack("pgd", eps=(0.0, 1.0, 40.0), step=10.0, steps=(8,)), seed=5)
    report = evaluate_robustness(predictor, held_out, {}, plan)
    check(json.loads(json.dumps(report)), ROBUSTNESS_SCHEMA, "report")
    assert report["clean"] == 1
    found = {each["name"]: each for each in report["corruptions"]["by_corruption"]}
    assert list(found) == list(CORRUPTIONS)
    # A tenth more light makes dark images light; what keeps the mean deceives nobody.
    assert found["brightness"]["by_severity"][2:] == [0.5] * 3
    assert found["defocus_blur"]["mean"] == 1
    every = np.array([each["by_severity"] for each in found.values()])
    assert report["corruptions"]["mean"] == pytest.approx(every.mean())
    assert report["corruptions"]["by_severity"] == pytest.approx(every.mean(0).tolist())
    by_eps = [point["accuracy"] for point in report["attack"]["points"]]
    assert by_eps == [1, 1, 0]


def test_the_command_prints_and_writes_it(
    sure: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ("evaluate", "--data", folder, "--split", "all", "--model", sure, "--device", "cpu", "--limit", 2)
    attack = ("--attack", "fgsm", "--eps", "1,40")
    done = run_program(capsys, monkeypatch, *asked, *attack, "--corruptions", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "2 of 6 images" in done.err
    assert "jpeg compression" in done.out
    assert "accuracy under fgsm" in done.out
    report = json.loads((tmp_path / "out" / "robustness.json").read_text())
    check(report, ROBUSTNESS_SCHEMA, "report")
    assert report["data"]["images"] == 2
    assert [point["eps"] for point in report["attack"]["points"]] == [1, 40]
    with Image.open(tmp_path / "out" / "robustness.png") as image:
        assert image.width > 1000
    printed = run_program(capsys, monkeypatch, *asked, *attack, "--json")
    assert json.loads(printed.out)["attack"] == report["attack"]


def test_an_image_that_fails_is_named_and_wrong(
    sure: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    whole = (folder / "dark" / "0.png").read_bytes()
    (tmp_path / "data" / "dark" / "0.png").write_bytes(whole[: len(whole) // 2])
    asked = ("--split", "all", "--model", sure, "--device", "cpu", "--attack", "fgsm", "--eps", "0", "--json")
    done = run_program(capsys, monkeypatch, "evaluate", "--data", tmp_path / "data", *asked)
    assert done.code == 1
    assert "0.png" in done.err
    report = json.loads(done.out)
    check(report, ROBUSTNESS_SCHEMA, "report")
    assert report["clean"] == report["attack"]["points"][0]["accuracy"] == pytest.approx(5 / 6)


def test_a_large_image_is_judged_by_a_copy_or_refused(
    sure: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for label, level in zip(CLASSES, (110, 146), strict=True):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (2050, 2047), (level, level, level)).save(tmp_path / "data" / label / "large.png")
    asked = ("evaluate", "--data", tmp_path / "data", "--split", "all", "--model", sure, "--attack", "fgsm")
    done = run_program(capsys, monkeypatch, *asked, "--device", "cpu", "--out", tmp_path / "out")
    assert done.code == 2
    assert "large.png: 2,050 x 2,047 pixels are too many" in done.err
    assert "--side 2048" in done.err
    assert not (tmp_path / "out" / "robustness.json").exists()
    done = run_program(capsys, monkeypatch, *asked, "--device", "cpu", "--side", 64, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["data"]["side"], report["data"]["reduced"], report["clean"]) == (64, 2, 1)


def test_a_copy_is_the_mean_over_areas(sure: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    loaded = load(Predictor(sure, device="cpu"), str(tmp_path / "image.png"), 20, 0.5)
    assert (loaded.reduced, loaded.mpp) == (True, 2.0)
    expected = pixels.reshape(10, 4, 20, 4, 3).mean((1, 3))
    assert np.abs(loaded.pixels - expected).max() <= 1  # flat files are halved first, and rounded twice


def test_the_same_seed_gives_the_same_report(sure: Path, folder: Path) -> None:
    predictor = Predictor(sure, device="cpu")
    held_out = limited(load_held_out(folder, CLASSES, "all"), 1, 0)
    once, again = (evaluate_robustness(predictor, held_out, {}, Plan(corruptions=True, seed=3)) for _ in range(2))
    assert {**again, "date": None} == {**once, "date": None}


def test_limited_images_are_drawn_by_the_seed(folder: Path) -> None:
    every = load_held_out(folder, CLASSES, "all")
    some = [limited(every, 3, seed).examples for seed in range(8)]
    assert all(len(examples) == 3 for examples in some)
    assert limited(every, 3, 0).examples == some[0]
    assert len(set(some)) > 1
    places = [every.examples.index(example) for example in some[1]]
    assert places == sorted(places)
    assert limited(every, 6, 0) is every
    with pytest.raises(ConfigError, match="1 or more"):
        limited(every, 0, 0)


def test_options_make_a_plan_or_an_error() -> None:
    assert make_plan() is None
    plan = make_plan(attack="pgd", eps="4,1", steps="10,1", step=0.5, side=64, seed=3)
    assert plan == Plan(False, Attack("pgd", (1.0, 4.0), 0.5, (1, 10)), 64, 3)
    once = make_plan(attack="fgsm")
    assert once is not None
    assert once.attack == Attack("fgsm", (4.0,), steps=(1,))
    asked: list[tuple[dict[str, Any], str]] = [
        ({"eps": "4"}, "--eps goes with --attack"),
        ({"corruptions": True, "steps": "4"}, "--steps goes with --attack"),
        ({"side": 64}, "--side goes with"),
        ({"corruptions": True, "side": 0}, "1 or more"),
        ({"attack": "pgd", "eps": "much"}, "numbers such as 1,2,4"),
        ({"attack": "fgsm", "step": 1.0}, "fgsm takes one step"),
        ({"attack": "fgsm", "steps": "3"}, "fgsm takes one step"),
    ]
    for options, message in asked:
        with pytest.raises(ConfigError, match=message):
            make_plan(**options)
