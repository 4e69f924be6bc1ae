"""The comparison of methods takes each result once, and weighs runs by their images."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.side_by_side_report import draw_chart, gather, markdown


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
SCENES = [
    {
        "track": "hints",
        "arm": "topdown",
        "date": "2026-01-01",
        "training": {"seconds": 30.0},
        "rows": [
            {"label": "a", "predicted": "a", "fixations": 3, "macs": 10, "pixels_decoded": 7, "seconds": 0.5},
            {"label": "a", "predicted": "b", "fixations": 5, "macs": 30, "pixels_decoded": 7, "seconds": 0.5},
        ],
    }
]


def test_runs_weigh_what_they_judged() -> None:
    found = gather(RESULTS, SCENES)
    assert found["samples"]["gfnet"]["accuracy"] == pytest.approx((0.5 * 30 + 0.8 * 10) / 40)
    assert found["samples"]["gfnet"]["macs"] == pytest.approx(2.5e6)
    assert found["scenes"]["topdown with hints"]["accuracy"] == 0.5
    assert found["scenes"]["topdown with hints"]["fixations"] == 4
    assert "bytes_read" not in found["scenes"]["topdown with hints"]


def test_the_page_and_the_figure_hold_every_arm(tmp_path: Path) -> None:
    text = markdown(RESULTS, SCENES)
    for words in (
        "| Tissue samples | fcn-64 | 40 | 0.250 | 2.0 | 1.0 | 0.050 | 1.0 |",
        "| Street scenes | topdown with",
    ):
        assert words in text
    assert "| Tissue samples | gfnet | learned | 0.650 (2.0, 3.0), 1.000 (2.0, 3.0) |" in text
    draw_chart(RESULTS, SCENES, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > picture.height
