"""Cross-validation: every labelled image validates once, groups and equal contents stay together, classes are spread
evenly.

The rule is that of scikit-learn's StratifiedGroupKFold: groups whose images are spread most unevenly over the classes
go first, each to the fold that leaves the classes' shares most even. Groups that are equal in that follow each other by
a hash of the seed and their names, and what differs by float noise alone is equal, so that neither the order of the
files, nor where they lie, nor the machine decides anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.training.contents import leaks
from pyrtrav.training.data import Dataset, Example, fraction

Unit = tuple[str, str]
"""What moves as one: ("group", its name), or ("image", its path relative to the data)."""


def k_folds(dataset: Dataset, k: int, seed: int = 0) -> list[Dataset]:
    """Return ``k`` datasets; in each another ``k``-th of the images validates, and the others train.

    Test images stay what they are. Where ``train`` and ``val`` were given, both are divided anew.

    Raises:
        ConfigError: fewer than 2 folds.
        DatasetError: fewer groups than folds, or a class that would have nothing to train on.
    """
    if k < 2:
        raise ConfigError(f"cross-validation needs 2 folds or more, got {k}")
    pool = [example for example in dataset.examples if example.split != "test"]
    unit_of = _units(pool, dataset.alike)
    spread = _spread(_counts(pool, unit_of, len(dataset.classes)), k, seed)
    fold_of = {path: spread[unit] for path, unit in unit_of.items()}
    folds = [_one(dataset, fold_of, k, number, seed) for number in range(k)]
    _check_trained(dataset, folds)
    return folds


def one_fold(dataset: Dataset, fold: str, seed: int = 0) -> Dataset:
    """Return the dataset of one fold, such as ``2/5``: the second of five.

    Raises:
        ConfigError: no such fold.
        DatasetError: as of `k_folds`.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", fold)
    number, k = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= k:
        raise ConfigError(f"fold {fold!r} is none; name one as 2/5, the second of five")
    return k_folds(dataset, k, seed)[number - 1]


def _unit(example: Example) -> Unit:
    return ("image", example.key or example.path) if example.group is None else ("group", example.group)


def _units(pool: Sequence[Example], alike: Sequence[Sequence[str]]) -> dict[str, Unit]:
    """The unit of each image, by path; units that share a content are one, under the first of their names."""
    unit_of = {example.path: _unit(example) for example in pool}
    joined: dict[Unit, Unit] = {}

    def first(unit: Unit) -> Unit:
        while unit in joined:
            unit = joined[unit]
        return unit

    for paths in alike:
        units = sorted({first(unit_of[path]) for path in paths if path in unit_of})
        joined |= dict.fromkeys(units[1:], units[0])
    return {path: first(unit) for path, unit in unit_of.items()}


def _counts(pool: Sequence[Example], unit_of: dict[str, Unit], classes: int) -> dict[Unit, NDArray[np.int64]]:
    """Each unit with the number of its images of every class."""
    units: dict[Unit, NDArray[np.int64]] = {}
    for example in pool:
        units.setdefault(unit_of[example.path], np.zeros(classes, np.int64))[example.label] += 1
    return units


def _spread(units: dict[Unit, NDArray[np.int64]], k: int, seed: int) -> dict[Unit, int]:
    """The fold of each unit."""
    if len(units) < k:
        raise DatasetError(f"{len(units)} images or groups cannot be divided into {k} folds; use fewer folds")
    # All numbers are divided by a class's total: one that is in the test images alone has nothing to spread.
    total = np.maximum(sum(units.values()), 1)
    names = sorted(units, key=lambda unit: (fraction(seed, ":".join(unit)), unit))
    uneven = {unit: round(float(np.std(units[unit])), 9) for unit in names}
    folds = np.zeros((k, len(total)), np.int64)
    fold_of = {}
    for unit in sorted(names, key=lambda unit: -uneven[unit]):
        best = fold_of[unit] = _best_fold(folds, units[unit], total)
        folds[best] += units[unit]
    return fold_of


def _best_fold(folds: NDArray[np.int64], unit: NDArray[np.int64], total: NDArray[np.int64]) -> int:
    """The fold (its images of each class) that leaves the classes most even; of equal ones the smallest."""
    classes, images = np.flatnonzero(unit), folds.sum(1).tolist()
    if len(classes) == 1:
        # The usual case: then it is the fold with the fewest of that class.
        inside = folds[:, classes[0]].tolist()
        return min(range(len(folds)), key=lambda fold: (inside[fold], images[fold]))
    added = folds + np.eye(len(folds), dtype=np.int64)[:, :, None] * unit  # (where it goes, fold, class)
    spread = (added / total).std(1).mean(1).tolist()
    best = 0
    for fold in range(1, len(spread)):
        alike = abs(spread[fold] - spread[best]) <= 1e-8 + 1e-5 * spread[best]
        if images[fold] < images[best] if alike else spread[fold] < spread[best]:
            best = fold
    return best


def _one(dataset: Dataset, fold_of: dict[str, int], k: int, number: int, seed: int) -> Dataset:
    """The dataset of a fold; ``fold_of`` tells those of the images by path."""
    examples = tuple(
        example
        if example.split == "test"
        else replace(example, split="val" if fold_of[example.path] == number else "train")
        for example in dataset.examples
    )
    warnings = []
    absent = set(range(len(dataset.classes))) - {e.label for e in examples if e.split == "val"}
    if absent:
        named = ", ".join(repr(dataset.classes[label]) for label in sorted(absent))
        warnings.append(f"fold {number + 1} of {k}: no validation images of {named}")
    rule = f"fold {number + 1} of {k}, stratified by class and whole groups, seed {seed}"
    by_path = {example.path: example for example in examples}
    # What may stand on two sides yet are the test images' contents.
    warnings += leaks([[by_path[path] for path in paths] for paths in dataset.alike])
    of_data = [warning for warning in dataset.warnings if warning not in dataset.split_warnings]
    return replace(
        dataset,
        examples=examples,
        warnings=(*of_data, *warnings),
        split_warnings=tuple(warnings),
        rule=rule,
        fold=f"{number + 1}/{k}",
    )


def _check_trained(dataset: Dataset, folds: Sequence[Dataset]) -> None:
    for number, fold in enumerate(folds):
        untrained = {e.label for e in dataset.examples} - {e.label for e in fold.split("train")}
        if untrained:
            raise DatasetError(
                f"class {dataset.classes[min(untrained)]!r}: all its images are in one fold ({number + 1} of "
                f"{len(folds)}), which leaves none to train on; its images must be of two groups or more, and differ"
            )
