"""Early exit from held-out images to the command line: the curve, the table in the model file, mean budgets."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrtrav.cohort import ResultFile
from pyrtrav.errors import PyramidError
from pyrtrav.exits import look_of, read_table
from pyrtrav.model_file import load_model, save_model
from pyrtrav.predict import Input, Predictor
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example, load_dataset
from pyrtrav.training.early_exit import exit_table, share_left, sweep, trained_exits
from pyrtrav.training.held_out import load_held_out
from pyrtrav.training.report import evaluate_model
from pyrtrav.training.runs import COSTS, Run, run_over
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from pyrtrav.training.vector_cache import VectorCache
from pyrtrav.tree import EVALUATION_SCHEMA, check
from tests.program import Done, run_program
from tests.samples import TISSUE
from tests.test_exits import METHODS, PATHS, predictor_of
from tests.toy_images import SMALL, make_images

EXAMPLES = [Example(str(path), 0, "val", None, "") for path in PATHS[:5]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    return partial(run_program, capsys, monkeypatch)


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of each class."""
    root = tmp_path_factory.mktemp("tissue")
    for label in ("clear", "lesion"):
        (root / label).mkdir()
        for i in range(3):
            shutil.copy(TISSUE / "val" / label / f"{i:03}.tif", root / label)
    return root


def test_vectors_that_training_remembers_cost_what_they_would() -> None:
    predictor = predictor_of("topdown")
    model, card, device = predictor.model, predictor.card, predictor.device
    wanted = trained_exits(model, card, EXAMPLES, device)
    model.encoder.requires_grad_(False)
    model.traversal.memory = memory = VectorCache(model.encoder)  # type: ignore[union-attr]
    run_over(predictor, EXAMPLES, predictor.settings())
    assert trained_exits(model, card, EXAMPLES, device)["costs"] == wanted["costs"]
    assert model.traversal.memory is memory  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_is_what_runs_with_these_confidences_give(method: str) -> None:
    """From one run without them: answers, looks, multiply-accumulates and tiles."""
    predictor = predictor_of(method)
    settings = predictor.settings()
    whole = run_over(predictor, EXAMPLES, settings)
    points = list(sweep(whole))
    assert len(points) >= 2
    for confidence, cut in points:
        real = run_over(predictor, EXAMPLES, replace(settings, stop_at=(confidence,)))
        assert cut.final == pytest.approx(real.final, abs=1e-5)
        assert cut.depths.tolist() == real.depths.tolist()
        for name in ("fixations", "macs", "pixels_decoded"):
            assert cut.costs[name][-1].tolist() == real.costs[name][-1].tolist()
        assert share_left(whole, cut) == np.mean(real.depths < 3)


def test_shallow_and_failed_images_in_the_curve() -> None:
    """By hand: one sure at once, one of a single depth, one that failed, one sure at the end."""
    beliefs = [
        [[0.9, 0.1], [0.6, 0.4], [0, 0], [0.5, 0.5]],
        [[0.2, 0.8], [0.6, 0.4], [0, 0], [0.4, 0.6]],
        [[0.1, 0.9], [0.6, 0.4], [0, 0], [0.0, 1.0]],
    ]
    looks = np.array([[1, 1, np.nan, 1], [4, 1, np.nan, 4], [9, 1, np.nan, 8]])
    costs = dict.fromkeys(("fixations", "macs", "pixels_decoded", "seconds", "judged_macs", "bytes_read"), looks)
    run = Run(Settings("all", depth=2), np.array(beliefs), costs, np.array([2, 0, -1, 2]), {2: PyramidError("cut")})
    found = dict(sweep(run))
    assert found[0.7].depths.tolist() == [0, 0, -1, 2]
    assert found[0.7].final.tolist() == [[0.9, 0.1], [0.6, 0.4], [0, 0], [0.0, 1.0]]
    assert found[0.7].costs["fixations"][0, [0, 1, 3]].tolist() == [1, 1, 8]
    assert np.isnan(found[0.7].costs["fixations"][0, 2])
    assert share_left(run, found[0.7]) == pytest.approx(1 / 3)
    assert found[0.6].depths.tolist() == [0, 0, -1, 1]
    assert list(found) == [0.3, 0.6, 0.7, 0.95], "others let the same images go"
    table = exit_table(run)
    assert table is not None
    assert table.confidence.tolist() == [[0.9, 0.6, 0.5], [0.8, 0.6, 0.6], [0.9, 0.6, 1.0]]
    assert table.costs["bytes"].tolist() == [[1, 1, 1], [4, 1, 4], [9, 1, 8]]
    unknown = replace(run, costs={**costs, "bytes_read": np.full((3, 4), np.nan)})
    assert set(exit_table(unknown).costs) == {"fixations", "macs"}  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_what_runs_that_stop_there_cost(method: str) -> None:
    predictor = predictor_of(method)
    settings = predictor.settings()
    table = exit_table(run_over(predictor, EXAMPLES, settings))
    assert table is not None
    for depth in range(3):
        for number, outcome in enumerate(predictor.predict([e.path for e in EXAMPLES], replace(settings, depth=depth))):
            cost = outcome.record["cost"]
            assert table.costs["fixations"][depth, number] == cost["fixations"]
            assert table.costs["macs"][depth, number] >= cost["macs"]
            said = max(outcome.record["prediction"]["probabilities"].values())
            assert table.confidence[depth, number] == pytest.approx(said, abs=1e-5)
    for number, example in enumerate(EXAMPLES):
        run_over(predictor, [], settings)  # forgets all tiles
        read = predictor.predict_with_costs([example.path], settings)[0]
        assert table.costs["bytes"][-1, number] == read[0].record["cost"]["bytes_read"]
    assert (np.diff(table.costs["bytes"], axis=0) >= 0).all()
    assert (table.costs["bytes"][0] > 0).all()


def test_the_report_has_the_curve_where_images_can_leave(tissue: Path) -> None:
    predictor = Predictor(device="cpu")
    held_out = load_held_out(tissue, predictor.card.classes)
    report = evaluate_model(predictor, held_out, {}, budgets=()).report
    check(json.loads(json.dumps(report)), EVALUATION_SCHEMA, "report")
    points = report["by_confidence"]
    assert [point["stop_at"] for point in points] == sorted({point["stop_at"] for point in points})
    left = [point["left_early"] for point in points]
    assert left == sorted(left, reverse=True)
    assert {frozenset(point["cost"]) for point in points} == {frozenset(COSTS)}
    costs = [point["cost"]["fixations"] for point in points]
    assert costs == sorted(costs)
    for look in ({"budget": 2}, {"stop_at": 0.9}):
        other = evaluate_model(predictor, held_out, look, budgets=None if "stop_at" in look else ()).report
        check(json.loads(json.dumps(other)), EVALUATION_SCHEMA, "report")
        assert other["by_confidence"] == other["by_budget"] == []


def test_training_leaves_a_table_where_early_answers_are_trained(tmp_path: Path) -> None:
    data = make_images(tmp_path / "images")
    for method, more, wanted in (("mgnet", ["glimpses=3"], True), ("topdown", ["max_depth=1"], False)):
        small = [*SMALL[:2], "epochs=1", "batch_size=4", *more]
        dataset = load_dataset(data)
        card, config = plan_training(dataset, method=method, assignments=small)
        path = Trainer(dataset, card, config, tmp_path / method, device="cpu").run()
        loaded = load_model(path)
        assert bool(loaded.card.exits) == wanted
        if not wanted:
            continue
        table, predictor = read_table(loaded.card.exits), Predictor(loaded, device="cpu")
        settings = predictor.settings()
        assert table.look == look_of(settings)
        run = run_over(predictor, dataset.split("val"), settings)
        assert table.confidence == pytest.approx(run.probabilities.max(2), abs=2e-6)
        assert table.costs["fixations"].tolist() == [[1] * 4, [2] * 4, [3] * 4]
        assert table.costs["macs"].tolist() == run.costs["macs"].tolist()
        found = predictor.predict([e.path for e in dataset.split("val")], predictor.settings(mean_budget="2"))
        assert np.mean([outcome.record["cost"]["fixations"] for outcome in found]) == 2


def test_a_mean_budget_on_the_command_line(run: Callable[..., Done], tissue: Path, tmp_path: Path) -> None:
    """The table is added to a copy of a model; its images then cost what was asked for, whatever the unit."""
    model, out = tmp_path / "with exits.safetensors", tmp_path / "results.jsonl"
    words = ("classify", tissue, "--mean-budget", "5", "--json")
    code, _, said = run(*words)
    assert code == 2
    assert "no table of held-out exits" in " ".join(said.split())
    options = ("evaluate", "--data", tissue, "--budgets", "none", "--save-exits", model)
    assert run(*options).code == 0
    assert load_model(model).card.purpose == load_model().card.purpose
    code, _, said = run(*options)
    assert (code, "exists already" in " ".join(said.split())) == (2, True)
    table = read_table(load_model(model).card.exits)
    names = {"fixations": "fixations", "macs": "macs", "bytes": "bytes_read"}
    for unit, name in names.items():
        means = table.costs[unit].mean(1)
        wanted = float(means[0] + 0.6 * (means[-1] - means[0]))
        run_over(Predictor(model), [], Predictor(model).settings())  # forgets all tiles
        code, printed, _ = run("classify", tissue, "--model", model, "--mean-budget", f"{wanted}{unit}", "--json")
        assert code == 0
        records: list[dict[str, Any]] = [json.loads(line) for line in printed.splitlines()]
        mean = np.mean([record["cost"][name] for record in records])
        assert means[0] <= mean <= wanted * (1 + 1e-9)
        assert any(record["cost"]["left_early"] for record in records)
        assert len({json.dumps(record["settings"]["stop_at"]) for record in records}) == 1
    assert run(*words, "--model", model, "--out", out).code == 0
    assert run("classify", tissue, "--model", model, "--stop-at", "0.5", "--out", out, "--resume").code == 0
    kept = [json.loads(line)["settings"]["stop_at"] for line in out.read_text().splitlines()]
    assert len(kept) == 12, "other thresholds are another question"
    assert [0.5] in kept


def test_explain_stops_where_classify_does(run: Callable[..., Done], tmp_path: Path) -> None:
    tree = tmp_path / "tree.json"
    assert run("explain", PATHS[0], "--out", tree, "--stop-at", "0").code == 0
    explained = json.loads(tree.read_text())
    assert (len(explained["nodes"]), len(explained["levels"])) == (1, 1)
    assert explained["cost"]["left_early"]
    assert run("explain", "--tree", tree, "--stop-at", "0.5").code == 2


def test_results_of_before_are_resumed(run: Callable[..., Done], tmp_path: Path) -> None:
    """Records without early exit are those of before there was any: their key is the same."""
    out = tmp_path / "results.jsonl"
    assert run("classify", PATHS[0], "--out", out).code == 0
    old = json.loads(out.read_text())
    assert "stop_at" not in old["settings"]
    del old["cost"]["left_early"]
    out.write_text(json.dumps(old) + "\n")
    predictor = Predictor(device="cpu")
    with ResultFile(out, resume=True) as results:
        assert results.known(predictor, Input(str(PATHS[0])), predictor.settings()) == old
        assert results.known(predictor, Input(str(PATHS[0])), predictor.settings(stop_at=0.9)) is None


def test_wrong_usage_is_told_before_anything_is_run(run: Callable[..., Done], tissue: Path, tmp_path: Path) -> None:
    for words, message in [
        (("classify", tissue, "--stop-at", "2"), "between 0 and 1"),
        (("classify", tissue, "--stop-at", "0.5", "--budget", "3"), "depth by depth"),
        (("classify", tissue, "--mean-budget", "3 cells"), "unknown unit 'cells'"),
        (("evaluate", "--data", tissue, "--save-exits", tmp_path / "none" / "m"), "its folder does not exist"),
        (("evaluate", "--data", tissue, "--stop-at", "0.5", "--save-exits", tmp_path / "m"), "no image leaves early"),
        (("evaluate", "--data", tissue, "--budget", "3", "--save-exits", tmp_path / "m"), "no table"),
        (("evaluate", "--data", tissue, "--stop-at", "0.5", "--budgets", "3"), "depth by depth"),
    ]:
        code, printed, said = run(*words)
        assert (code, printed) == (2, ""), words
        assert message in " ".join(said.split()), words
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_a_damaged_model(run: Callable[..., Done], tmp_path: Path) -> None:
    loaded = load_model()
    save_model(tmp_path / "m.safetensors", loaded.model, replace(loaded.card, exits={"confidence": [[0.5]]}))
    code, _, said = run("classify", PATHS[0], "--model", tmp_path / "m.safetensors")
    assert code == 2
    assert "table of held-out exits is damaged" in " ".join(said.split())
