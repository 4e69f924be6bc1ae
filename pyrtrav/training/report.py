"""What an evaluation says: figures with intervals, by class, by depth and by budget, as plain data.

The report (``pyrtrav.evaluation/1``, see ``schemas``) is made from runs over the same images: one as asked for, which
also gives the beliefs after each depth, and one for each budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrtrav import __version__
from pyrtrav.errors import ConfigError
from pyrtrav.how_to_look import goes_by_depth
from pyrtrav.methods import find_method
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.source import short_name
from pyrtrav.selection import Settings
from pyrtrav.training.bootstrap import LEVEL, RESAMPLES, bootstrap_intervals, unit_numbers
from pyrtrav.training.early_exit import share_left, sweep
from pyrtrav.training.held_out import HeldOut
from pyrtrav.training.metrics import classification_metrics, confusion_matrix, metrics_by_class
from pyrtrav.training.runs import COSTS, Run, run_over
from pyrtrav.tree import EVALUATION_SCHEMA

Report = dict[str, Any]
"""See ``schemas/evaluation.schema.json``."""

Watch = Callable[[str, int], None]
"""Told a run's name and how many images of it are done."""

_DIGITS = 6


@dataclass(frozen=True)
class Evaluated:
    """The report, and the run that it is about."""

    report: Report
    held_out: HeldOut
    run: Run


def evaluate_model(
    predictor: Predictor,
    held_out: HeldOut,
    look: Mapping[str, Any],
    *,
    budgets: Sequence[int] | None = None,
    mpp: float | None = None,
    command: str | None = None,
    watch: Watch | None = None,
) -> Evaluated:
    """Judge a model on held-out images.

    Args:
        look: the options of ``Predictor.settings``; figures are those of what `classify` says under them.
        budgets: numbers of looks to try beside; None takes powers of two up to what ``look`` attends, where the
            method has budgets.

    Raises:
        ConfigError: options that the method does not have.
    """
    settings = predictor.settings(**look)
    if budgets:
        predictor.settings(**{**look, "budget": budgets[0]})  # refused before the images are run, not after

    def judge(name: str, look: Mapping[str, Any]) -> Run:
        on_images = None if watch is None else _counting(watch, name)
        return run_over(predictor, held_out.examples, predictor.settings(**look), mpp=mpp, on_images=on_images)

    # What a process loads and compiles at its first look is the time of no image.
    predictor.predict([held_out.examples[0].path], settings, mpp=mpp)
    run = judge("as asked", look)
    if budgets is None:
        budgets = default_budgets(predictor, run)
    by_budget = {budget: judge(f"budget {budget}", {**look, "budget": budget}) for budget in budgets}
    report = {
        "schema": EVALUATION_SCHEMA,
        "version": __version__,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": described_data(predictor, held_out),
        **described_model(predictor, settings, mpp),
        **_figures(predictor, held_out, run, by_budget),
        "failures": _failures(held_out, {"as asked": run, **{f"budget {n}": r for n, r in by_budget.items()}}),
    }
    return Evaluated(report, held_out, run)


def _counting(watch: Watch, name: str) -> Callable[[int], None]:
    """From how many more are done to how many are."""
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        watch(name, done)

    return on_images


def parse_budgets(text: str) -> tuple[int, ...]:
    """Read ``1,4,16``, or ``none``.

    Raises:
        ConfigError: something else.
    """
    if text.strip().lower() == "none":
        return ()
    try:
        budgets = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"budgets are numbers of looks such as 1,4,16, or none; got {text!r}") from error
    if min(budgets) < 1:
        raise ConfigError(f"a budget must be 1 or more, got {min(budgets)}")
    return tuple(sorted(set(budgets)))


def default_budgets(predictor: Predictor, run: Run) -> tuple[int, ...]:
    """Return powers of two up to the mean number of looks of a run, and that number."""
    looks = run.costs["fixations"][-1]
    looks = looks[~np.isnan(looks)]
    if "budget" not in find_method(predictor.card.method).supports or run.settings.depth == 0 or not len(looks):
        return ()
    if run.settings.stop_at is not None:
        return ()  # a budget beside it is another question, or none
    most = max(1, round(float(looks.mean())))
    return (*(2**i for i in range(most.bit_length()) if 2**i < most), most)


def described_data(predictor: Predictor, held_out: HeldOut) -> dict[str, Any]:
    """Return what a report says of its images."""
    labels = [example.label for example in held_out.examples]
    return {
        "path": held_out.source,
        "split": held_out.split,
        "images": len(labels),
        "by_class": {name: labels.count(number) for number, name in enumerate(predictor.card.classes)},
    }


def described_model(predictor: Predictor, settings: Settings, mpp: float | None) -> dict[str, Any]:
    """Return what a report says of its model, and of how it looked."""
    described = predictor.described(settings, mpp)
    model = {
        "name": short_name(predictor.loaded.path),
        **described["model"],
        "purpose": predictor.card.purpose,
        "multi_level": getattr(getattr(predictor.model, "config", None), "multi_level", None),
    }
    return {"model": model, "settings": described["settings"]}


def _figures(predictor: Predictor, held_out: HeldOut, run: Run, by_budget: Mapping[int, Run]) -> dict[str, Any]:
    """What is said of the runs."""
    labels = np.array([example.label for example in held_out.examples], np.int64)
    groups = [example.group for example in held_out.examples]
    classes, seed = predictor.card.classes, run.settings.seed
    confusion = confusion_matrix(run.final, labels)
    by_depth = [_with_intervals(beliefs, labels, groups, seed) for beliefs in run.probabilities]
    return {
        "metrics": by_depth[-1],
        "bootstrap": {
            "resamples": RESAMPLES,
            "level": LEVEL,
            "unit": "group" if any(group is not None for group in groups) else "image",
            "units": int(unit_numbers(groups, len(labels)).max()) + 1,
            "seed": seed,
        },
        "per_class": [
            {"class": name, **{key: _plain(value) for key, value in asdict(found).items()}}
            for name, found in zip(classes, metrics_by_class(run.final, labels), strict=True)
        ],
        "confusion": {
            "classes": list(classes),
            "counts": confusion[:, :-1].tolist(),
            "failed": confusion[:, -1].tolist(),
        },
        "by_depth": [
            {"depth": z, "images": int((run.depths >= z).sum()), "metrics": metrics, "cost": _mean_cost(run, z)}
            for z, metrics in enumerate(by_depth)
        ],
        "by_budget": [
            {
                "budget": budget,
                "failed": len(other.errors),
                "metrics": _with_intervals(other.final, labels, groups, seed),
                "cost": _mean_cost(other, -1),
            }
            for budget, other in by_budget.items()
        ],
        "by_confidence": [
            {
                "stop_at": confidence,
                "left_early": _plain(share_left(run, cut)),
                "metrics": _with_intervals(cut.final, labels, groups, seed),
                "cost": _mean_cost(cut, -1),
            }
            for confidence, cut in (sweep(run) if _can_leave(predictor, run) else ())
        ],
    }


def _can_leave(predictor: Predictor, run: Run) -> bool:
    """Whether the run says what early exit would have given."""
    return goes_by_depth(predictor.card, run.settings) and run.settings.stop_at is None and len(run.probabilities) > 1


def _with_intervals(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], groups: Sequence[str | None], seed: int
) -> dict[str, dict[str, float | None]]:
    values = classification_metrics(probabilities, labels)
    intervals = bootstrap_intervals(probabilities, labels, groups, seed=seed)
    return {
        name: {"value": _plain(value), "low": _plain(intervals[name][0]), "high": _plain(intervals[name][1])}
        for name, value in values.items()
    }


def _mean_cost(run: Run, depth: int) -> dict[str, float | None]:
    """Of the images that did not fail."""
    means = {}
    for name in COSTS:
        values = run.costs[name][depth]
        defined = values[~np.isnan(values)]
        means[name] = _plain(float(defined.mean())) if len(defined) else None
    return means


def _failures(held_out: HeldOut, runs: Mapping[str, Run]) -> list[dict[str, str]]:
    """Each image that failed, once, with the first run in which it did."""
    found: dict[int, dict[str, str]] = {}
    for name, run in runs.items():
        for number, error in run.errors.items():
            described = {"type": type(error).__name__, "message": str(error), "run": name}
            found.setdefault(number, {"path": held_out.examples[number].path, **described})
    return [found[number] for number in sorted(found)]


def _plain(value: float) -> float | None:
    """JSON has no nan; digits beyond the sixth are those of single precision."""
    return None if math.isnan(value) else round(value, _DIGITS)
