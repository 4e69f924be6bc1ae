"""`pyrtrav evaluate`: what is judged, that it is what `classify` says, and what is written."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.methods.topdown import TopDown
from pyrtrav.model_file import load_model
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.training.charts import joined_names, legible, save_confusion, save_cost
from pyrtrav.training.held_out import load_held_out
from pyrtrav.training.metrics import classification_metrics
from pyrtrav.training.report import Report, default_budgets, evaluate_model, parse_budgets
from pyrtrav.training.runs import COSTS, run_over
from pyrtrav.tree import EVALUATION_SCHEMA, check
from tests.program import Done, run_program
from tests.samples import IMAGES, TISSUE
from tests.toy_images import SMALL, make_images

CLASSES = ("clear", "lesion")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six test images and two of train."""
    root = tmp_path_factory.mktemp("tissue")
    for split, count in (("test", 3), ("train", 1)):
        for label in CLASSES:
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                source = TISSUE / ("val" if split == "test" else split) / label / f"{i:03}.tif"
                shutil.copy(source, root / split / label / source.name)
    return root


def table(path: Path, rows: list[tuple[str, ...]], columns: str = "path,label") -> Path:
    path.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def image_of(label: str, number: int) -> str:
    return str(TISSUE / "val" / label / f"{number:03}.tif")


# What is judged.


def test_the_split_is_test_then_val_then_everything(folder: Path, tmp_path: Path) -> None:
    found = load_held_out(folder, CLASSES)
    assert (found.split, len(found.examples), found.warnings) == ("test", 6, ())
    assert load_held_out(TISSUE, CLASSES).split == "val"
    train = load_held_out(folder, CLASSES, "train")
    assert len(train.examples) == 2
    assert "flatter" in train.warnings[0]
    every = load_held_out(folder, CLASSES, "all")
    assert len(every.examples) == 8
    plain = table(tmp_path / "plain.csv", [(image_of("clear", i), "clear") for i in range(2)])
    found = load_held_out(plain, CLASSES)
    assert (found.split, len(found.examples)) == ("all", 2)  # one class only, which training would refuse
    assert "flatter" in found.warnings[0]
    with pytest.raises(DatasetError, match="no images of the split 'val'; it has train, test"):
        load_held_out(folder, CLASSES, "val")
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        load_held_out(folder, CLASSES, "tset")


def test_data_without_splits_are_divided_as_in_training(tmp_path: Path) -> None:
    from pyrtrav.training.data import load_dataset

    rows = [(image_of(label, i), label) for label in CLASSES for i in range(12)]
    plain = table(tmp_path / "plain.csv", rows)
    for seed in (0, 1):
        dataset = load_dataset(plain, seed=seed)
        wanted, training = dataset.split("val"), {"seed": seed, "data_digest": dataset.digest}
        found = load_held_out(plain, ("other", *reversed(CLASSES)), "val", training=training)
        assert [example.path for example in found.examples] == [example.path for example in wanted]
        assert [example.label for example in found.examples] == [2 - example.label for example in wanted]
    others = table(tmp_path / "others.csv", rows[1:])
    for training in ({"seed": 0, "data_digest": dataset.digest}, {"seed": 0}, {}):
        with pytest.raises(DatasetError, match=r"no images of the split 'val'.*\(only the data that a model"):
            load_held_out(others, CLASSES, "val", training=training)


def test_a_model_of_a_fold_is_judged_on_its_own_part(tmp_path: Path) -> None:
    """Also where the table says otherwise: in the fold, those may have been trained on."""
    from pyrtrav.training.data import load_dataset
    from pyrtrav.training.folds import one_fold

    rows = [(image_of(label, i), label, "val" if i < 3 else "train") for label in CLASSES for i in range(12)]
    listed = table(tmp_path / "listed.csv", rows, "path,label,split")
    dataset = load_dataset(listed)
    training = {"seed": 0, "fold": "2/3", "data_digest": dataset.digest}
    wanted = {name: one_fold(dataset, "2/3").split(name) for name in ("train", "val")}
    for split, name in ((None, "val"), ("val", "val"), ("train", "train")):
        found = load_held_out(listed, CLASSES, split, training=training)
        assert found.split == name
        assert [example.path for example in found.examples] == [example.path for example in wanted[name]]
        assert any("in the model's training: fold 2 of 3" in warning for warning in found.warnings)
    table(tmp_path / "tested.csv", [*rows[:-1], (*rows[-1][:2], "test")], "path,label,split")
    found = load_held_out(tmp_path / "tested.csv", CLASSES, training=training)
    assert [example.path for example in found.examples] == [rows[-1][0]]


def test_other_data_than_those_of_the_fold_are_judged_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command that trains to the one that judges: the model's own data, moved and in another order; and an
    external cohort, also of one class or with a split of its own."""
    home, away = tmp_path / "home", tmp_path / "away"
    make_images(home)
    run = partial(run_program, capsys, monkeypatch)
    options = [word for option in (*SMALL, "epochs=1") for word in ("--set", option)]
    assert run("train", "--data", home, "--fold", "2/3", "--out", tmp_path / "run", *options).code == 0
    model = tmp_path / "run" / "model.safetensors"
    home.rename(away)
    rows = [(str(path.relative_to(away)), path.parent.name) for path in sorted(away.rglob("*.png"))]

    def judged(data: Path) -> tuple[str, int, str]:
        found = load_held_out(data, ("dark", "light"), training=load_model(model).card.training)
        return found.split, len(found.examples), found.warnings[-1]

    shutil.copy(away / rows[0][0], away / "more.png")
    cohorts = {"more": [*rows, ("more.png", "dark")], "fewer": rows[1:], "dark": [r for r in rows if r[1] == "dark"]}
    for own in (away, table(away / "own.csv", rows[::-1])):
        split, images, said = judged(own)
        assert (split, images) == ("val", 4)
        assert "as in the model's training: fold 2 of 3" in said
    for name, kept in cohorts.items():
        assert judged(table(away / f"{name}.csv", kept))[:2] == ("all", len(kept))
    given = table(away / "given.csv", [(*row, row[0].split("/")[0]) for row in rows[1:]], "path,label,split")
    assert judged(given)[:2] == ("val", 4)
    options = ["--model", model, "--budgets", "none", "--json"]
    code, printed, said = run("evaluate", "--data", away / "fewer.csv", *options)
    assert (code, json.loads(printed)["data"]["images"]) == (0, 11)
    assert "not the data that the model was trained on in fold 2/3" in " ".join(said.split())
    assert "as in the model's training" not in said


def test_labels_are_the_model_s(folder: Path, tmp_path: Path) -> None:
    found = load_held_out(folder, ("lesion", "other", "clear"))
    assert {Path(e.path).parent.name: e.label for e in found.examples} == {"clear": 2, "lesion": 0}
    rows = [(image_of("clear", 0), "clear"), (image_of("lesion", 0), "tumour"), (image_of("lesion", 1), "cyst")]
    with pytest.raises(DatasetError, match=r"odd\.csv:3: .*'cyst', 'tumour'; it knows 'clear', 'lesion'"):
        load_held_out(table(tmp_path / "odd.csv", rows), CLASSES)


def test_a_patient_on_both_sides_is_refused(tmp_path: Path) -> None:
    rows = [(image_of("clear", 0), "clear", "train", "p1"), (image_of("clear", 1), "clear", "test", "p1")]
    with pytest.raises(DatasetError, match="group 'p1'"):
        load_held_out(table(tmp_path / "leak.csv", rows, "path,label,split,group"), CLASSES)


# What is run.


@pytest.mark.parametrize("look", [{}, {"budget": 5}, {"select": "sample", "seed": 3}, {"k": 1, "depth": 3}], ids=str)
def test_it_judges_what_classify_says(predictor: Predictor, folder: Path, look: dict[str, Any]) -> None:
    settings = predictor.settings(**look)
    held_out = load_held_out(folder, CLASSES)
    run = run_over(predictor, held_out.examples, settings)
    for number, example in enumerate(held_out.examples):
        record = predictor.predict([example.path], settings)[0].record
        for level in record["levels"]:
            said = [level["probabilities"][name] for name in CLASSES]
            assert run.probabilities[level["depth"], number] == pytest.approx(said, abs=1e-4)
        assert run.depths[number] == record["levels"][-1]["depth"]
        for name in ("fixations", "macs"):
            assert run.costs[name][-1, number] == record["cost"][name]


@pytest.mark.parametrize(
    ("look", "images"),
    [({}, IMAGES[1:]), ({"select": "sample"}, IMAGES[1:2]), ({"k": 2, "depth": 3}, IMAGES[:1])],
    ids=str,
)
def test_a_prefix_is_a_run_that_stops_there(predictor: Predictor, look: dict[str, Any], images: list[Path]) -> None:
    """Beliefs and costs after a depth, from one traversal, are those of a run of that depth on an empty cache."""
    settings = predictor.settings(**look)
    for path in images:
        whole, costs = predictor.predict_with_costs([path], settings)[0]
        assert len(costs) == len(whole.record["levels"])
        for depth, cost in enumerate(costs):
            shared_cache().clear()
            record = predictor.predict([path], replace(settings, depth=depth))[0].record
            assert record["cost"]["fixations"] == cost.fixations
            assert record["cost"]["macs"] == cost.macs
            assert record["cost"]["pixels_decoded"] == cost.pixels_decoded
            wanted = record["prediction"]["probabilities"]
            assert whole.record["levels"][depth]["probabilities"] == pytest.approx(wanted, abs=1e-4)


def test_a_prefix_of_a_trace_is_a_trace(predictor: Predictor) -> None:
    """Also where a budget looks at depths in any order: the believed part is the same, and nothing hangs in the air."""
    settings = predictor.settings(budget=25, depth=4)
    model = predictor.model
    assert isinstance(model, TopDown)
    with predictor.open(IMAGES[0]) as image, predictor.open(IMAGES[1]) as other:
        trace = model.look([image, other], replace(settings, beam=3))
    for depth in range(5):
        part = trace.until(depth)
        assert (part.depth <= depth).all()
        assert (part.depth[part.parent] < depth).all()
        assert (part.region[part.child[part.on]] == part.cell_region[part.on]).all()
        assert model.believe(part, depth).tolist() == model.believe(trace, depth).tolist()
    assert model.macs(trace.until(4)) == model.macs(trace)


def test_images_shallower_than_the_run_keep_their_last_belief(predictor: Predictor, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.fromarray(np.full((80, 80, 3), 200, np.uint8)).save(small)
    data = table(tmp_path / "data.csv", [(str(small), "clear"), (image_of("clear", 0), "clear")])
    run = run_over(predictor, load_held_out(data, CLASSES).examples, predictor.settings())
    assert run.depths.tolist() == [0, 2]
    assert (run.probabilities[:, 0] == run.probabilities[0, 0]).all()
    assert run.costs["fixations"][:, 0].tolist() == [1, 1, 1]


def test_nothing_stays_open(predictor: Predictor, folder: Path) -> None:
    def opened() -> int:
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                continue  # that of the listing itself
        return sum(str(folder) in link for link in links)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    counts: list[int] = []
    examples = load_held_out(folder, CLASSES, "all").examples * 3
    run_over(predictor, examples, predictor.settings(budget=1), on_images=lambda _: counts.append(opened()))
    assert counts == [0, 0, 0]


# What is said.


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of five images of three patients; one is cut short and one is no image at all."""
    root = tmp_path_factory.mktemp("broken")
    whole = Path(image_of("lesion", 3)).read_bytes()
    (root / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (root / "text.svs").write_text("no slide")
    rows = [
        (image_of("clear", 0), "clear", "p1"),
        (image_of("clear", 1), "clear", "p1"),
        (image_of("lesion", 0), "lesion", "p2"),
        ("cut.tif", "lesion", "p3"),
        ("text.svs", "clear", ""),
    ]
    return table(root / "data.csv", rows, "path,label,group")


def test_failed_images_count_as_wrong(predictor: Predictor, broken: Path) -> None:
    done: list[tuple[str, int]] = []
    held_out = load_held_out(broken, CLASSES)
    evaluated = evaluate_model(predictor, held_out, {}, budgets=(1, 3), watch=lambda *told: done.append(told))
    report = evaluated.report
    check(json.loads(json.dumps(report)), EVALUATION_SCHEMA, "report")
    assert done == [("as asked", 5), ("budget 1", 5), ("budget 3", 5)]
    assert [Path(failure["path"]).name for failure in report["failures"]] == ["cut.tif", "text.svs"]
    assert report["metrics"]["accuracy"]["value"] == 0.6
    assert report["confusion"] == {"classes": list(CLASSES), "counts": [[2, 0], [0, 1]], "failed": [1, 1]}
    assert report["bootstrap"] == {"resamples": 1000, "level": 0.95, "unit": "group", "units": 4, "seed": 0}
    labels = np.array([example.label for example in held_out.examples])
    for depth, point in enumerate(report["by_depth"]):
        wanted = classification_metrics(evaluated.run.probabilities[depth], labels)
        assert {name: point["metrics"][name]["value"] for name in wanted} == pytest.approx(wanted, abs=1e-6)
        assert point["cost"]["fixations"] == pytest.approx(np.nanmean(evaluated.run.costs["fixations"][depth]))
    assert [point["budget"] for point in report["by_budget"]] == [1, 3]
    assert report["by_budget"][1]["cost"]["fixations"] == 3
    # The glance of a cut file may be whole; its deeper looks are not.
    assert all(point["failed"] in (1, 2) for point in report["by_budget"])


def test_budgets_by_default_and_as_written(predictor: Predictor, folder: Path) -> None:
    examples = load_held_out(folder, CLASSES).examples
    for budget, wanted in ((1, (1,)), (2, (1, 2)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))):
        assert default_budgets(predictor, run_over(predictor, examples, predictor.settings(budget=budget))) == wanted
    assert default_budgets(predictor, run_over(predictor, examples, predictor.settings(depth=0))) == ()
    assert parse_budgets("16, 4,1,4") == (1, 4, 16)
    assert parse_budgets("none") == ()
    for text in ("many", "", "0", "1.5", "4,,2"):
        with pytest.raises(ConfigError, match="budget"):
            parse_budgets(text)


def test_a_budget_is_what_classify_does_with_it(predictor: Predictor, folder: Path) -> None:
    """Beside another selection a budget caps it."""
    held_out = load_held_out(folder, CLASSES)
    for look in ({}, {"k": 1}):
        report = evaluate_model(predictor, held_out, look, budgets=(2,)).report
        outcomes = predictor.predict([e.path for e in held_out.examples], predictor.settings(**look, budget=2))
        right = [o.record["prediction"]["index"] == e.label for o, e in zip(outcomes, held_out.examples, strict=True)]
        point = report["by_budget"][0]
        assert point["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right), abs=1e-6)
        assert point["cost"]["fixations"] == np.mean([o.record["cost"]["fixations"] for o in outcomes])


# What is written.


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run the program in this process."""
    return partial(run_program, capsys, monkeypatch, "evaluate")


Run = Callable[..., Done]


def test_the_command_writes_a_report(run: Run, folder: Path, tmp_path: Path, predictor: Predictor) -> None:
    out = tmp_path / "made" / "evaluation"
    code, printed, said = run("--data", folder, "--out", out, "--budgets", "2", "--seed", "4", "--json")
    assert code == 0
    assert "clinical" in said
    report = json.loads(printed)
    check(report, EVALUATION_SCHEMA, "report")
    assert report == json.loads((out / "report.json").read_text())
    assert report["bootstrap"]["seed"] == report["settings"]["seed"] == 4
    assert report["command"].startswith("pyrtrav evaluate --data")
    assert sorted(path.name for path in out.iterdir()) == [
        *("confusion.png", "cost.png", "predictions.csv", "report.json"),
    ]
    for name in ("confusion.png", "cost.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 600
            picture.load()
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    outcomes = predictor.predict([row["path"] for row in rows])
    for row, outcome in zip(rows, outcomes, strict=True):
        record = outcome.record
        assert row["label"] == Path(row["path"]).parent.name
        assert row["predicted"] == row["predicted.depth_2"] == record["prediction"]["label"]
        assert row["correct"] == str(int(row["predicted"] == row["label"]))
        probabilities = record["prediction"]["probabilities"]
        assert {name: float(row[f"probability.{name}"]) for name in CLASSES} == pytest.approx(probabilities, abs=1e-4)
        assert [int(row[name]) for name in COSTS[:2]] == [record["cost"][name] for name in COSTS[:2]]
    accuracy = np.mean([int(row["correct"]) for row in rows])
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)


def test_failures_are_named_and_the_rest_is_done(run: Run, broken: Path, tmp_path: Path) -> None:
    code, printed, said = run("--data", broken, "--out", tmp_path / "out", "--budgets", "none")
    assert code == 1
    assert "cut.tif" in said
    assert "text.svs" in said
    assert "0.600" in printed
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["correct"] for row in rows] == ["1", "1", "1", "0", "0"]
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, True]
    assert rows[3]["predicted"] == rows[3]["probability.clear"] == rows[3]["macs"] == ""


def test_wrong_usage_is_told_in_a_line(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words, message in [
        (["--data", tmp_path / "nothing"], "no such file or folder"),
        (["--data", folder, "--split", "valid"], "unknown split"),
        (["--data", folder, "--budgets", "few"], "1,4,16"),
        (["--data", folder, "--out", tmp_path / "file"], "folder"),
        (["--data", folder, "--tau", "0.3", "--k", "2"], "goes with"),
        (["--data", folder, "--mpp", "-1"], "mpp"),
    ]:
        code, printed, said = run(*words)
        assert (code, printed) == (2, ""), words
        assert message in " ".join(said.split()), words


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['pyrtrav', 'evaluate', '--help']\nfrom pyrtrav.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'matplotlib', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# What is drawn.


def made_report(classes: list[str], counts: np.ndarray, *, failed: int = 0, cost: float | None = 100.0) -> Report:
    """The parts of a report that pictures are made from."""
    figure = {"value": 0.5, "low": 0.4, "high": 0.6} if cost else {"value": 0.0, "low": 0.0, "high": 0.0}
    means = dict.fromkeys(COSTS, cost)
    return {
        "data": {"path": "/data/Präparate $1$ [old]", "split": "test", "images": int(counts.sum()) + failed}
        | {"by_class": dict(zip(classes, counts.sum(1).tolist(), strict=True))},
        "model": {"name": "modèle.safetensors", "multi_level": False},
        "bootstrap": {"unit": "group", "units": 5},
        "metrics": {"accuracy": figure},
        "confusion": {"classes": classes, "counts": counts.tolist(), "failed": [failed] + [0] * (len(classes) - 1)},
        "by_depth": [{"depth": 0, "metrics": {"accuracy": figure}, "cost": means}],
        "by_budget": [],
    }


@pytest.mark.parametrize(
    "report",
    [
        made_report(["$a_b$", "腫瘍"], np.array([[3, 1], [0, 2]]), failed=1),
        made_report(["only"], np.array([[4]])),
        made_report([f"a rather long name of class {i}" for i in range(110)], np.eye(110, dtype=int)),
        made_report(["a", "b"], np.zeros((2, 2), int), failed=3, cost=None),
    ],
    ids=["odd names", "one class", "many classes", "all failed"],
)
def test_odd_reports_are_drawn(report: Report, tmp_path: Path) -> None:
    """No warning of matplotlib's gets through."""
    many = len(report["confusion"]["classes"]) > 10
    for draw in (save_confusion,) if many else (save_confusion, save_cost):
        draw(report, tmp_path / "drawn.png")
        with Image.open(tmp_path / "drawn.png") as picture:
            assert max(picture.size) < 4000


def test_the_same_report_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_confusion(made_report(["a", "b"], np.eye(2, dtype=int)), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_names_are_made_legible() -> None:
    assert legible("Mäuse_1.svs") == "Mäuse_1.svs"
    assert legible("腫a\n\udc80") == "?a??"
    short = legible("x" * 30 + "y" * 30, 20)
    assert (len(short), short[:3], short[-3:]) == (20, "xxx", "yyy")


def test_names_that_would_overlap_share_a_text() -> None:
    found = joined_names([1, 10, 10.1, 100, 99], [0.5, 0.6, 0.61, 0.7, 0.9], ["1", "2", "4", "8", "16"])
    assert found == [((1, 0.5), "1"), ((10, 0.6), "2, 4"), ((100, 0.7), "8"), ((99, 0.9), "16")]
    assert joined_names([3, 3], [0.5, 0.5], ["1", "2"]) == [((3, 0.5), "1, 2")]
