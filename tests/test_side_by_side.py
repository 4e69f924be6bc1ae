"""The comparison of methods takes each result once, and weighs runs by their images."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.side_by_side_judge import curves, early_exits, judge
from benchmarks.side_by_side_report import draw_chart, gather, markdown
from pyrtrav.predict import Predictor
from pyrtrav.selection import Settings
from pyrtrav.training.data import load_dataset
from pyrtrav.training.runs import Run


def result(arm: str, seed: int, accuracy: float, images: int, macs: float) -> dict[str, Any]:
    cost = {"accuracy": accuracy, "fixations": 2.0, "macs": macs, "pixels_decoded": 5e4, "seconds": 0.1}
    own = {"name": f"samples-{arm}-seed{seed}", "task": "samples", "arm": arm, "seed": seed, "images": images}
    more = {"settings": ["epochs=1"], "machine": "cpu", "date": "2026-01-01T00:00:00", "command": "python -m x"}
    curves = {"learned": [cost, cost | {"accuracy": 1.0}]} if arm == "gfnet" else {}
    return {**own, **cost, **more, "bytes_read": 1000.0, "training_seconds": 60.0, "curves": curves}


RESULTS = [
    result("gfnet", 0, 0.5, 30, 2e6),
    result("gfnet", 1, 0.8, 10, 4e6),
    result("fcn-64", 0, 0.25, 40, 1e6),
    result("fcn-128", 0, 0.75, 40, 9e6),
]


def test_runs_weigh_what_they_judged() -> None:
    found = gather(RESULTS)
    assert found["samples"]["gfnet"]["accuracy"] == pytest.approx((0.5 * 30 + 0.8 * 10) / 40)
    assert found["samples"]["gfnet"]["macs"] == pytest.approx(2.5e6)


def test_the_page_and_the_figure_hold_every_arm(tmp_path: Path) -> None:
    text = markdown(RESULTS)
    assert "| Tissue samples | fcn-64 | 40 | 0.250 | 2.0 | 1.0 | 0.050 | 1.0 |" in text
    assert "| Tissue samples | gfnet | learned | 0.650 (2.0, 3.0), 1.000 (2.0, 3.0) |" in text
    widths = []
    for rows in (RESULTS, [*RESULTS, *(row | {"task": "digits"} for row in RESULTS)]):
        draw_chart(rows, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as picture:
            widths.append(picture.width)
    assert widths[1] > 1.5 * widths[0]  # a panel for each task


def sure(right: list[list[float]]) -> Run:
    """Images that believe in class 0 so much after each depth; a look costs ten multiply-accumulates."""
    first = np.array(right).T
    cost = np.repeat(np.arange(1.0, len(first) + 1)[:, None], len(right), axis=1)
    return Run(
        Settings("all", depth=len(first) - 1),
        np.stack([first, 1 - first], axis=2),
        {"fixations": cost, "judged_macs": 10 * cost},
        np.full(len(right), len(first) - 1),
        {},
    )


def test_who_is_sure_leaves_early() -> None:
    easy, hard = [0.9, 0.95, 0.99], [0.4, 0.6, 0.7]
    points = early_exits(sure([easy, easy, hard, hard]), np.zeros(4, np.int64))
    assert [points[0][name] for name in ("accuracy", "fixations", "macs")] == [0.5, 1, 10]
    assert [points[-1][name] for name in ("accuracy", "fixations", "macs")] == [1, 3, 30]
    # Half of the looks, since the easy ones have one each and the others three.
    assert {(point["accuracy"], point["fixations"]) for point in points} >= {(1.0, 2.0)}
    assert all(one["macs"] <= other["macs"] for one, other in pairwise(points))


def test_thresholds_come_from_other_images_than_they_are_judged_on() -> None:
    # Even images are less sure at once and wrong, odd ones surer and right; later it is the other way round.
    even = [[0.1, 0.99], [0.2, 0.99], [0.3, 0.99], [0.4, 0.99]]
    odd = [[0.99, 0.4], [0.98, 0.4], [0.97, 0.4], [0.96, 0.4]]
    points = early_exits(sure([row for pair in zip(even, odd, strict=True) for row in pair]), np.zeros(8, np.int64))
    within = [point for point in points if 10 < point["macs"] < 20]
    # What is fitted on even images lets all odd ones go, and the other way round none: each half apart would be halved.
    assert len(within) >= 4
    assert all((point["macs"], point["accuracy"]) == (15, 1) for point in within)


def test_a_model_is_judged_on_real_images() -> None:
    predictor, dataset = Predictor(), load_dataset("sample_data/tissue")
    examples = [*dataset.split("val")[:3], *dataset.split("val")[-3:]]
    means, found = judge(predictor, dataset, examples), curves(predictor, examples)
    assert means["bytes_read"] > 0
    assert means["pixels_decoded"] > 0
    last = found["learned"][-1]
    assert (last["accuracy"], last["fixations"]) == (means["accuracy"], means["fixations"])
    assert found["learned"][0]["fixations"] == found["early exit"][0]["fixations"] == 1
