"""Early exit: who leaves, what that saves, and the thresholds for a mean cost."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrtrav.errors import ConfigError
from pyrtrav.exits import (
    MOST_IMAGES,
    ExitTable,
    MeanBudget,
    at_depths,
    exit_depths,
    exit_shares,
    fit_thresholds,
    leavers,
    look_of,
    parse_mean_budget,
    read_table,
    thresholds_for,
)
from pyrtrav.model_file import EncoderSpec, LoadedModel, ModelCard, build_model
from pyrtrav.predict import Outcome, Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import NEVER, Settings
from pyrtrav.tree import RESULT_SCHEMA, TREE_SCHEMA, check
from tests.samples import IMAGES, TISSUE, compared

METHODS: dict[str, dict[str, Any]] = {
    "topdown": {"max_depth": 3, "multi_level": True},
    "mgnet": {"glimpses": 4},
    "gfnet": {"looks": 4, "hidden": 8, "policy_hidden": 8, "halvings": 2},
}


def predictor_of(method: str, **card: Any) -> Predictor:
    """A model with random weights, which is sure of some images and not of others."""
    torch.manual_seed(3)
    spec = EncoderSpec("residual", {"base_resolution": 32, "widths": [4, 8]})
    selection = {"select": "topk", "k": 2} if method == "topdown" else {"select": "all"}
    made = ModelCard(method, spec, METHODS[method], ("a", "b", "c"), 3, max_depth=3, selection=selection, **card)
    model = build_model(made).eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.5 if name.startswith("classify") else 0.3)
    return Predictor(LoadedModel(model, made, "0" * 64, "made.safetensors"), device="cpu")


@pytest.fixture(scope="module", params=METHODS)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return predictor_of(request.param)


PATHS = [TISSUE / "val" / label / f"{i:03}.tif" for label in ("clear", "lesion") for i in range(6)]


def confidence(level: dict[str, Any]) -> float:
    return max(level["probabilities"].values())


def halving(outcomes: list[Outcome]) -> tuple[float, ...]:
    """Thresholds at which about half of those who are left leave after each depth; none near a confidence."""
    levels = [outcome.record["levels"] for outcome in outcomes]
    found = []
    for depth in range(len(levels[0]) - 1):
        own = sorted(confidence(each[depth]) for each in levels)
        inner = list(pairwise(own[len(own) // 4 : len(own) - len(own) // 4]))
        low, high = max(inner, key=lambda pair: pair[1] - pair[0])
        found.append((low + high) / 2)
        levels = [each for each in levels if confidence(each[depth]) < found[-1]]
    return tuple(found)


def test_who_leaves_is_as_far_as_it_was_and_costs_nothing_more(predictor: Predictor) -> None:
    settings = predictor.settings()
    shared_cache().clear()
    whole = predictor.predict(PATHS, settings)
    stop_at = halving(whole)
    shared_cache().clear()
    early = predictor.predict(PATHS, replace(settings, stop_at=stop_at))
    left = []
    for full, cut in zip(whole, early, strict=True):
        check(cut.record, RESULT_SCHEMA, "record")
        assert cut.tree is not None
        assert full.tree is not None
        check(cut.tree.to_dict(), TREE_SCHEMA, "tree")
        sure = [confidence(level) >= least for level, least in zip(full.record["levels"], stop_at, strict=False)]
        depth = [*sure, True].index(True)
        left.append(depth)
        assert len(cut.record["levels"]) == depth + 1
        assert cut.record["cost"]["left_early"] == (depth < 3)
        assert not full.record["cost"]["left_early"]
        for one, other in zip(full.record["levels"], cut.record["levels"], strict=False):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert cut.record["prediction"]["probabilities"] == cut.record["levels"][depth]["probabilities"]
        assert max(node.depth for node in cut.tree.nodes) <= depth
        assert [node.region.as_tuple() for node in cut.tree.nodes] == [
            pytest.approx(node.region.as_tuple(), rel=1e-4) for node in full.tree.nodes if node.depth <= depth
        ]
        # What it read and encoded is what a run of that depth alone reads and encodes.
        shared_cache().clear()
        alone = predictor.predict([cut.record["input"]["path"]], replace(settings, depth=depth))[0].record["cost"]
        names = ("fixations", "tiles_decoded", "tiles_distinct", "bytes_read", "pixels_decoded", "pixels_encoded")
        assert {name: cut.record["cost"][name] for name in names} == {name: alone[name] for name in names}
        assert cut.record["cost"]["macs"] >= alone["macs"]
    assert len(set(left)) > 2, "some leave at once, some later"


def test_images_do_not_influence_each_other(predictor: Predictor) -> None:
    whole = predictor.predict(PATHS)
    settings = replace(predictor.settings(), stop_at=halving(whole))
    for path, outcome in zip(PATHS, predictor.predict(PATHS, settings), strict=True):
        alone = predictor.predict([path], settings)[0].record
        assert [level["label"] for level in alone["levels"]] == [level["label"] for level in outcome.record["levels"]]
        assert alone["prediction"]["probabilities"] == pytest.approx(
            outcome.record["prediction"]["probabilities"], abs=1e-4
        )
        for name in ("fixations", "macs", "left_early"):
            assert alone["cost"][name] == outcome.record["cost"][name]


def test_a_failed_image_leaves_the_others_to_leave(predictor: Predictor, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    shutil.copy(PATHS[0], bad)
    bad.write_bytes(bad.read_bytes()[:-1000])
    (tmp_path / "text.svs").write_text("no slide")
    settings = predictor.settings(stop_at=0.0)
    outcomes = predictor.predict([tmp_path / "text.svs", PATHS[1]], settings)
    assert [outcome.record["status"] for outcome in outcomes] == ["error", "ok"]
    assert outcomes[1].record["cost"]["fixations"] == 1
    assert outcomes[1].record["cost"]["left_early"]


def test_a_confidence_that_nobody_reaches_changes_no_answer(predictor: Predictor) -> None:
    whole = predictor.predict(PATHS[:3])
    never = predictor.predict(PATHS[:3], replace(predictor.settings(), stop_at=(NEVER,)))
    for one, other in zip(whole, never, strict=True):
        for part in ("prediction", "levels", "status"):
            assert compared(one.record)[part] == compared(other.record)[part]
        assert not other.record["cost"]["left_early"]
        assert one.record["cost"]["fixations"] == other.record["cost"]["fixations"]


def test_explain_equals_classify(predictor: Predictor) -> None:
    settings = predictor.settings(stop_at=0.0)
    record = predictor.predict([PATHS[0]], settings)[0].record
    tree = predictor.explain(PATHS[0], settings)
    assert compared(tree.record) == compared(record)
    assert len(tree.nodes) == 1


def test_the_last_threshold_serves_deeper_depths() -> None:
    settings = Settings("all", depth=4, stop_at=(0.9, 0.5))
    assert [settings.confidence_at(depth) for depth in range(4)] == [0.9, 0.5, 0.5, 0.5]
    assert Settings("all").confidence_at(0) == NEVER


def test_thresholds_per_depth_are_heeded(predictor: Predictor) -> None:
    """Nobody leaves after the first look, everybody after the next."""
    settings = replace(predictor.settings(), stop_at=(NEVER, 0.0))
    for outcome in predictor.predict(PATHS[:3], settings):
        assert len(outcome.record["levels"]) == 2
        assert outcome.record["settings"]["stop_at"] == [NEVER, 0.0]


def test_nothing_to_look_at_and_a_later_depth_that_asks_for_less() -> None:
    """A run that attends nothing below the glance is judged by the thresholds of all depths, as its levels say."""
    predictor = predictor_of("topdown")
    settings = predictor.settings(tau=1.0)
    levels = predictor.predict([PATHS[0]], settings)[0].record["levels"]
    assert len(levels) == 4
    asked = replace(settings, stop_at=(NEVER, NEVER, 0.0))
    record = predictor.predict([PATHS[0]], asked)[0].record
    assert record["levels"] == levels[:3]
    assert record["cost"]["left_early"]


def test_multiply_accumulates_are_those_of_torch() -> None:
    """Of all that was computed on the way, the beliefs after each depth included."""
    from torch.utils.flop_counter import FlopCounterMode

    predictor = predictor_of("topdown")
    settings = replace(predictor.settings(depth=3), stop_at=(NEVER,), encode_batch=4096)
    with predictor.open(IMAGES[0]) as image, torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            trace = predictor.model.look([image], settings)
            predictor.model.believe(trace, 3)
        assert predictor.model.macs(trace) == [counter.get_total_flops() // 2]
    with predictor.open(IMAGES[0]) as image, torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            trace = predictor.model.look([image], replace(settings, stop_at=(NEVER, 0.0)))
        assert trace.left.tolist() == [1]
        assert predictor.model.macs(trace) == [counter.get_total_flops() // 2]


def test_what_cannot_be_is_refused() -> None:
    topdown, mgnet = predictor_of("topdown"), predictor_of("mgnet")
    for options, message in [
        ({"stop_at": 0.9, "budget": 4}, "depth by depth"),
        ({"stop_at": 0.9, "k": 1, "budget": 4}, "depth by depth"),
        ({"stop_at": 1.5}, "between 0 and 1"),
        ({"stop_at": 0.9, "mean_budget": "3"}, "leave one of them out"),
        ({"mean_budget": "3"}, "no table of held-out exits.*--save-exits"),
        ({"mean_budget": "3", "depth": 0}, "first look alone"),
    ]:
        with pytest.raises(ConfigError, match=message):
            topdown.settings(**options)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Settings("all", stop_at=(1.5,))
    with pytest.raises(ConfigError, match="depth by depth"):
        topdown.predict(PATHS[:1], Settings("budget", budget=4, depth=3, stop_at=(0.5,)))
    # A budget of glimpses is a depth.
    outcome = mgnet.predict(PATHS[:1], mgnet.settings(budget=2, stop_at=1.0))[0]
    assert outcome.record["cost"]["fixations"] <= 2


# Thresholds for a mean cost.


def test_mean_budgets_as_written() -> None:
    assert parse_mean_budget("6") == MeanBudget(6, "fixations")
    assert parse_mean_budget(" 40e6macs") == MeanBudget(40e6, "macs")
    assert parse_mean_budget("2.5E+5 bytes ") == MeanBudget(250_000, "bytes")
    for text in ("", "many", "-3", "0", "nan", "1e", "1..2", "3 4", "1e999"):
        with pytest.raises(ConfigError, match="mean budget"):
            parse_mean_budget(text)
    with pytest.raises(ConfigError, match="did you mean 'macs'"):
        parse_mean_budget("3 mac")


def table_of(confidence: Any, fixations: Any) -> ExitTable:
    costs = np.array(fixations, np.float64)
    return ExitTable({}, np.array(confidence, np.float64), {"fixations": costs, "macs": 1000 * costs})


def leaving(confidence: list[list[float]], thresholds: tuple[float, ...]) -> list[int]:
    """The rule, image by image."""
    found = []
    for own in zip(*confidence, strict=True):
        depth = 0
        while depth < len(own) - 1 and own[depth] < thresholds[depth]:
            depth += 1
        found.append(depth)
    return found


def test_the_rule_by_hand() -> None:
    confidence = [[0.9, 0.6, 0.5, 0.4], [0.2, 0.8, 0.7, 0.3], [0.99, 0.1, 0.9, 0.5]]
    # Of four images half leave after the first look and a quarter after the second.
    assert thresholds_for(np.array(confidence), np.array([2, 3])) == (0.6, 0.7)
    assert exit_depths(np.array(confidence), (0.6, 0.7)).tolist() == [0, 0, 1, 2]
    assert at_depths(np.array(confidence), np.array([0, 0, 1, 2])).tolist() == [0.9, 0.6, 0.7, 0.5]
    assert exit_shares(0.5, 4).tolist() == [0.25] * 4
    assert exit_shares(2 / 3, 3) == pytest.approx(np.array([1, 2, 4]) / 7)
    assert exit_shares(0, 3).tolist() == [1, 0, 0]
    assert exit_shares(1, 3).tolist() == [0, 0, 1]


CONFIDENCES = st.integers(1, 4).flatmap(
    lambda depths: st.integers(1, 12).flatmap(
        lambda images: st.lists(
            st.lists(st.sampled_from([0.2, 0.4, 0.5, 0.51, 0.7, 0.9, 1.0]), min_size=images, max_size=images),
            min_size=depths,
            max_size=depths,
        )
    )
)


@settings(max_examples=60, deadline=None)
@given(CONFIDENCES, st.floats(0, 1))
def test_shares_are_met_but_for_ties(confidence: list[list[float]], late: float) -> None:
    values, images = np.array(confidence), len(confidence[0])
    shares = exit_shares(late, len(confidence))
    thresholds = thresholds_for(values, leavers(shares, images))
    depths = leaving(confidence, thresholds)
    assert exit_depths(values, thresholds).tolist() == depths
    for depth, wanted in enumerate(np.round(np.cumsum(shares)[:-1] * images).astype(int)):
        gone = sum(d <= depth for d in depths)
        assert gone >= wanted
        equal = sum(d == depth and confidence[depth][i] == thresholds[depth] for i, d in enumerate(depths))
        before = sum(d < depth for d in depths)
        assert gone == before or gone - equal < wanted


@settings(max_examples=60, deadline=None)
@given(CONFIDENCES, st.data())
def test_the_mean_cost_is_within_the_budget_and_grows_with_it(confidence: list[list[float]], data: Any) -> None:
    images = len(confidence[0])
    step = st.lists(st.integers(1, 9), min_size=images, max_size=images)
    costs = np.cumsum([data.draw(step) for _ in confidence], axis=0)
    table = table_of(confidence, costs)
    least, most = costs[0].mean(), costs[-1].mean()
    reached = []
    for share in (0.0, 0.3, 0.6, 1.0):
        budget = float(least + share * (most - least))
        thresholds = fit_thresholds(table, MeanBudget(budget, "fixations"))
        reached.append(float(at_depths(table.costs["fixations"], exit_depths(table.confidence, thresholds)).mean()))
        assert reached[-1] <= budget + 1e-9
        assert fit_thresholds(table, MeanBudget(1000 * budget, "macs")) == thresholds
    assert reached == sorted(reached)
    assert (reached[0], reached[-1]) == pytest.approx((least, most))


def test_two_depths_are_solved_as_well_as_can_be() -> None:
    """Brute force over all thresholds: with one exit, the shares reach every one of them."""
    random = np.random.default_rng(0)
    for images in (1, 5, 40):
        confidence, costs = random.random((2, images)), np.cumsum(random.integers(1, 50, (2, images)), axis=0)
        table = table_of(confidence, costs)
        for budget in np.linspace(costs[0].mean(), costs[1].mean(), 7).tolist():
            means = []
            for threshold in (*confidence[0].tolist(), NEVER):
                depths = leaving(confidence.tolist(), (threshold,))
                means.append(np.mean([costs[depth, i] for i, depth in enumerate(depths)]))
            wanted = max(mean for mean in means if mean <= budget)
            found = fit_thresholds(table, MeanBudget(budget, "fixations"))
            reached = at_depths(table.costs["fixations"], exit_depths(confidence, found)).mean()
            assert reached == pytest.approx(wanted)


def test_three_depths_come_near_the_best_of_their_family() -> None:
    """Every q whose exits differ, image by image in plain Python."""
    random = np.random.default_rng(1)
    confidence, costs = random.random((3, 9)), np.cumsum(random.integers(1, 20, (3, 9)), axis=0)
    means = []
    for late in np.linspace(0, 1, 4001).tolist():
        weights = [(1 - late) ** 2, late * (1 - late), late**2]
        waiting, mean = list(range(9)), 0.0
        for depth in range(3):
            share = sum(weights[: depth + 1]) / sum(weights)
            count = round(share * 9) - (9 - len(waiting)) if depth < 2 else len(waiting)
            surest = sorted(waiting, key=lambda i: -confidence[depth, i])[: max(count, 0)]
            mean += sum(costs[depth, i] for i in surest) / 9
            waiting = [i for i in waiting if i not in surest]
        means.append(mean)
    for budget in np.linspace(costs[0].mean(), costs[-1].mean(), 9).tolist():
        found = fit_thresholds(table_of(confidence, costs), MeanBudget(budget, "fixations"))
        reached = at_depths(costs.astype(float), exit_depths(confidence, found)).mean()
        assert reached == pytest.approx(max(mean for mean in means if mean <= budget + 1e-9))


def test_impossible_budgets_are_refused() -> None:
    table = table_of([[0.5, 0.6], [0.7, 0.8]], [[1, 1], [3, 5]])
    with pytest.raises(ConfigError, match=r"0\.5 fixations is below .* first look alone costs, 1"):
        fit_thresholds(table, MeanBudget(0.5, "fixations"))
    with pytest.raises(ConfigError, match="bytes of the held-out images are unknown"):
        fit_thresholds(table, MeanBudget(100, "bytes"))
    assert fit_thresholds(table, MeanBudget(100, "fixations")) == (NEVER,)


@settings(max_examples=60, deadline=None)
@given(CONFIDENCES)
def test_a_kept_table_lets_the_same_images_leave(confidence: list[list[float]]) -> None:
    """Rounding a confidence down never moves an image over a threshold that was fitted on the rounded ones."""
    exact = np.minimum(np.array(confidence) + np.linspace(0, 3e-6, len(confidence[0])), 1.0)
    kept = read_table(table_of(exact, np.ones_like(exact)).to_plain())
    for late in (0.2, 0.5, 0.8):
        to_leave = leavers(exit_shares(late, len(confidence)), len(confidence[0]))
        thresholds = thresholds_for(kept.confidence, to_leave)
        assert (exit_depths(exact, thresholds) == exit_depths(kept.confidence, thresholds)).all()


def test_a_table_stays_small() -> None:
    random = np.random.default_rng(0)
    costs = np.cumsum(random.integers(1, 10**9, (4, 10_000)), axis=0)
    plain = ExitTable({}, random.random((4, 10_000)), {"fixations": costs, "macs": costs, "bytes": costs}).to_plain()
    kept = read_table(plain)
    assert kept.confidence.shape == (4, MOST_IMAGES)
    assert set(kept.costs) == {"fixations", "macs", "bytes"}


def test_damaged_tables_are_refused() -> None:
    good = table_of([[0.5, 0.6], [0.7, 0.8]], [[1, 1], [3, 5]]).to_plain()
    assert read_table(good).confidence.tolist() == [[0.5, 0.6], [0.7, 0.8]]
    damages: list[dict[str, Any]] = [
        {"confidence": [[0.5, 0.6], [0.7]]},
        {"confidence": [[0.5, 1.6], [0.7, 0.8]]},
        {"confidence": []},
        {"costs": {"fixations": [[1, 1], [3, 5]]}},
        {"costs": {"fixations": [[1, 1], [3, 5]], "macs": [[1], [2]]}},
        {"costs": {"fixations": [[1, 1], [3, 5]], "macs": [[1, -1], [2, 2]]}},
        {"look": None},
    ]
    for damage in damages:
        with pytest.raises(ConfigError, match="damaged"):
            read_table({**good, **damage})
    with pytest.raises(ConfigError, match="damaged"):
        read_table({})


def test_a_mean_budget_is_fitted_on_the_table_of_the_same_way_of_looking() -> None:
    plain = predictor_of("topdown")
    settings = plain.settings()
    random = np.random.default_rng(0)
    costs = np.cumsum(random.integers(1, 9, (4, 50)), axis=0)
    table = ExitTable(look_of(settings), random.random((4, 50)), {"fixations": costs, "macs": 10 * costs})
    predictor = predictor_of("topdown", exits=table.to_plain())
    budget = float(costs[1].mean())
    found = predictor.settings(mean_budget=f"{budget}")
    assert found.stop_at == fit_thresholds(read_table(table.to_plain()), MeanBudget(budget, "fixations"))
    assert predictor.described(found, None)["settings"]["stop_at"] == list(found.stop_at or ())
    assert "stop_at" not in predictor.described(settings, None)["settings"]
    assert predictor.settings(mean_budget=f"{budget * 10}macs").stop_at == found.stop_at
    for options in ({"k": 3}, {"depth": 2}, {"select": "all"}):
        with pytest.raises(ConfigError, match=r"another way of looking \((k 2|depth 3|select topk)"):
            predictor.settings(mean_budget="5", **options)
