"""The verdicts on the multi-glimpse paper's claims: a difference counts from two standard errors on."""

from typing import Any

from benchmarks.mgnet_report import models, orderings, table_4


def result(model: str, corrupted: list[float], attacked: float, seed: int = 0) -> dict[str, Any]:
    """Of one look; ``corrupted`` has an accuracy for each kind."""
    kinds = {f"kind {number}": [value] for number, value in enumerate(corrupted)}
    own = {"name": f"translated-{model}-seed{seed}", "dataset": "translated", "model": model, "seed": seed}
    attack = {"4": {"4": [attacked], "20": [attacked], "300": [attacked]}}
    return {
        **own,
        "corruptions": kinds,
        "attacked": attack,
        "attacked_images": 200,
        "accuracies": [0.99],
        "macs": [3_471_051],
    }


def test_claims_are_judged_over_kinds_of_corruption_and_images() -> None:
    found = models([result("mgnet", [0.6, 0.7, 0.8], 0.9), result("ff", [0.5, 0.6, 0.7], 0.5)])
    lines = orderings(found, "translated")[2:]
    assert len(lines) == 4
    assert all(line.endswith("| reproduced |") for line in lines)
    assert "70.0 against 60.0; +10.0 ± 0.0 points, above in 3 of 3" in lines[0]
    # The error of 0.9 - 0.5 with 200 images each.
    assert "90.0 against 50.0; +40.0 ± 4.1 points" in lines[2]
    mixed = models([result("mgnet", [0.9, 0.3, 0.6], 0.9), result("ff", [0.5, 0.6, 0.7], 0.88)])
    assert all(line.endswith("| undecided |") for line in orderings(mixed, "translated")[2:])


def test_what_was_not_trained_is_said() -> None:
    found = models([result("mgnet", [0.5], 0.5)])
    assert orderings(found, "translated") == ["Not trained yet."]
    assert sum("not trained" in line for line in table_4(found)) == 3
