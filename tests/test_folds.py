"""Cross-validation: whole groups, even classes, and nothing that depends on order or place."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.training.data import Dataset, Example, load_dataset
from pyrtrav.training.folds import _best_fold, _spread, k_folds, one_fold
from tests.samples import TISSUE


def example(number: int, label: int, group: str | None = None, split: str = "train") -> Example:
    return Example(f"/data/{number}.tif", label, split, group, "table", f"{number}.tif")  # type: ignore[arg-type]


def dataset(examples: list[Example], classes: int = 3) -> Dataset:
    return Dataset(tuple("abcdef"[:classes]), tuple(examples), ())


# Images of 2 to 4 classes, each alone or in one of some groups; every class in many units.
labelled = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(0, 12))), min_size=20, max_size=80
).filter(lambda rows: len({label for label, _ in rows}) == 3)


def make(rows: list[tuple[int, int | None]]) -> Dataset:
    return dataset([example(i, label, None if group is None else f"g{group}") for i, (label, group) in enumerate(rows)])


def folds_or_none(made: Dataset, k: int, seed: int = 0) -> list[Dataset] | None:
    try:
        return k_folds(made, k, seed)
    except DatasetError:
        return None


def sides(folds: list[Dataset]) -> list[set[str]]:
    return [{example.path for example in fold.split("val")} for fold in folds]


@given(rows=labelled, k=st.integers(2, 5), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_image_validates_once_and_groups_stay_together(
    rows: list[tuple[int, int | None]], k: int, seed: int
) -> None:
    made = make(rows)
    folds = folds_or_none(made, k, seed)
    assume(folds is not None)
    assert folds is not None
    validated = Counter(path for side in sides(folds) for path in side)
    assert validated == Counter(example.path for example in made.examples)
    for number, fold in enumerate(folds):
        assert [replace(e, split="train") for e in fold.examples] == list(made.examples)
        places: dict[str, set[str]] = {}
        for one in fold.examples:
            if one.group is not None:
                places.setdefault(one.group, set()).add(one.split)
        assert all(len(place) == 1 for place in places.values())
        assert {one.label for one in fold.split("train")} == {one.label for one in made.examples}
        assert fold.rule == f"fold {number + 1} of {k}, stratified by class and whole groups, seed {seed}"


@given(rows=labelled, k=st.integers(2, 5), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_order_and_place_of_the_files_do_not_matter(rows: list[tuple[int, int | None]], k: int, seed: int) -> None:
    made = make(rows)
    folds = folds_or_none(made, k, seed)
    assume(folds is not None)
    assert folds is not None
    moved = [replace(one, path=one.path.replace("/data", "/mnt/else")) for one in made.examples]
    random.Random(seed).shuffle(moved)
    again = k_folds(replace(made, examples=tuple(moved)), k, seed)
    assert sides(again) == [{path.replace("/data", "/mnt/else") for path in side} for side in sides(folds)]


@given(counts=st.lists(st.integers(5, 40), min_size=2, max_size=4), k=st.integers(2, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_classes_of_single_images_are_spread_within_one(counts: list[int], k: int, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    folds = k_folds(dataset([example(i, label) for i, label in enumerate(labels)], len(counts)), k, seed)
    for label, count in enumerate(counts):
        inside = [sum(one.label == label for one in fold.split("val")) for fold in folds]
        assert set(inside) <= {count // k, -(-count // k)}
    assert all(fold.warnings == () for fold in folds)


@pytest.mark.parametrize("seed", range(12))
def test_groups_go_where_scikit_learn_puts_them(seed: int) -> None:
    """Equal, group by group, where no two choices are equally good; empty folds are, so their order is open."""
    drawn = np.random.default_rng(seed)
    k, counts = int(drawn.integers(2, 6)), drawn.integers(0, 150, (int(drawn.integers(8, 30)), 3))
    counts[::4, 1:] = 0  # some groups of one class
    counts = counts[counts.sum(1) > 0]
    found = _spread({("group", f"g{number}"): row for number, row in enumerate(counts)}, k, seed)
    labels = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    members = np.repeat(np.arange(len(counts)), counts.sum(1))
    theirs = {frozenset(members[held_out]) for _, held_out in StratifiedGroupKFold(k).split(labels, labels, members)}
    ours = {frozenset(int(unit[1][1:]) for unit, fold in found.items() if fold == number) for number in range(k)}
    assert ours == theirs


@given(
    groups=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=6, max_size=30),
    k=st.integers(2, 6),
)
@settings(deadline=None, max_examples=30)
def test_no_other_fold_would_have_been_better(groups: list[list[int]], k: int) -> None:
    """Step by step against the definition: the mean over classes of the deviation of their shares."""
    folds, total = np.zeros((k, 3), np.int64), np.maximum(np.sum(groups, 0), 1)
    for group in groups:
        best = _best_fold(folds, np.array(group), total)
        unevenness = []
        for fold in range(k):
            folds[fold] += group
            unevenness.append(np.mean([np.std(folds[:, c] / total[c]) for c in range(3)]))
            folds[fold] -= group
        equal = np.flatnonzero(np.isclose(unevenness, min(unevenness)))
        assert best in equal
        assert folds[best].sum() == folds[equal].sum(1).min()
        folds[best] += group


def test_a_seed_is_another_division() -> None:
    made = dataset([example(i, i % 3) for i in range(30)])
    assert sides(k_folds(made, 3, seed=0)) == sides(k_folds(made, 3, seed=0))
    assert sides(k_folds(made, 3, seed=0)) != sides(k_folds(made, 3, seed=1))


def test_test_images_stay_and_given_splits_are_pooled() -> None:
    made = dataset([example(i, i % 2, split=("train", "val", "test")[i % 3]) for i in range(24)], 2)
    for fold in k_folds(made, 4):
        assert [e.path for e in fold.split("test")] == [e.path for e in made.split("test")]
        assert len(fold.split("val")) == 4


def write_images(root: Path, shades: dict[str, int]) -> Path:
    for name, shade in shades.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), shade).save(root / name)
    return root


def test_equal_contents_stand_on_one_side(tmp_path: Path) -> None:
    """Also where they lie in two groups, which are then one."""
    shades = {f"{'ab'[i % 2]}/{i:02}.png": 10 * i for i in range(24)}
    shades |= {"a/01 again.png": shades["a/00.png"], "a/02 again.png": shades["a/00.png"], "b/again.png": 10}
    root = write_images(tmp_path / "images", shades)
    folder = load_dataset(root)
    assert sorted(len(paths) for paths in folder.alike) == [2, 3]
    lines = [f"{name},{name[0]},{'p1' if name in ('a/02.png', 'a/01 again.png') else ''}" for name in shades]
    (root / "grouped.csv").write_text("\n".join(["path,label,group", *lines, ""]))
    for made, together in ((folder, 0), (load_dataset(root / "grouped.csv"), 1)):
        for seed in range(4):
            for fold in k_folds(made, 3, seed):
                side = {str(Path(e.path).relative_to(root)): e.split for e in fold.examples}
                assert side["a/00.png"] == side["a/01 again.png"] == side["a/02 again.png"]
                assert side["b/01.png"] == side["b/again.png"]
                assert fold.warnings == ()
                if together:
                    assert side["a/02.png"] == side["a/00.png"]


def test_warnings_are_of_the_fold_and_not_of_the_split_that_it_replaces(tmp_path: Path) -> None:
    shades = {f"train/{'ab'[i % 2]}/{i:02}.png": 10 * i for i in range(12)}
    root = write_images(tmp_path / "trained", shades)
    (root / "train" / "a" / "note.txt").write_text("no image")
    made = load_dataset(root)
    assert any("no split val; 20% of train" in warning for warning in made.warnings)
    for fold in k_folds(made, 3):
        assert len(fold.warnings) == 1
        assert "no reader can open it" in fold.warnings[0]
    # The given sides leak, the folds do not; and no class is missing in them.
    shades |= {"val/a/00.png": 200, "val/a/again.png": shades["train/a/00.png"]}
    made = load_dataset(write_images(tmp_path / "both", shades))
    assert ["two splits" in warning for warning in made.warnings] == [False, True]
    assert "no validation images of 'b'" in made.warnings[0]
    assert all(fold.warnings == () for fold in k_folds(made, 3))
    # What is in the test images too leaks in every fold.
    made = load_dataset(write_images(tmp_path / "tested", {**shades, "test/a/again.png": 0}))
    for fold in k_folds(made, 3):
        (warning,) = fold.warnings
        assert re.search(r"same content in two splits .*\((train|val)\) and .*test/a/again\.png \(test\)", warning) or (
            re.search(r"same content in two splits .*test/a/again\.png \(test\) and .*\((train|val)\)", warning)
        )


def test_the_digest_knows_the_data_wherever_they_lie(tmp_path: Path) -> None:
    shades = {f"{'ab'[i % 2]}/{i:02}.png": 10 * i for i in range(12)}
    found = load_dataset(write_images(tmp_path / "one", shades)).digest
    lines = [f"{name},{name[0]}" for name in shades]
    again = write_images(tmp_path / "two" / "deep", {**shades, "a/test.png": 250})
    random.Random(0).shuffle(lines)
    (again / "a.csv").write_text("\n".join(["path,label", *lines, ""]))
    (again / "b.csv").write_text(
        "\n".join(["path,label,split", *(f"{line},train" for line in lines), "a/test.png,a,test"])
    )
    assert {load_dataset(again / name, seed=seed).digest for name in ("a.csv", "b.csv") for seed in (0, 1)} == {found}
    others = {
        "one more": [*lines, "a/test.png,a"],
        "one less": lines[1:],
        "another label": [line.replace("a/02.png,a", "a/02.png,b") for line in lines],
        "another class's name": [line.replace(",a", ",c") for line in lines],
        "grouped": [f"{line},p{number // 2}" for number, line in enumerate(lines)],
    }
    digests = {found}
    for name, rows in others.items():
        head = "path,label,group" if name == "grouped" else "path,label"
        (again / f"{name}.csv").write_text("\n".join([head, *rows, ""]))
        digests.add(load_dataset(again / f"{name}.csv").digest)
    assert len(digests) == 1 + len(others)


def test_what_cannot_be_divided_is_said() -> None:
    with pytest.raises(ConfigError, match="needs 2 folds or more, got 1"):
        k_folds(make([(0, None), (1, None)]), 1)
    with pytest.raises(DatasetError, match="2 images or groups cannot be divided into 3 folds"):
        k_folds(make([(0, 1), (1, 1), (2, 2)]), 3)
    with pytest.raises(DatasetError, match=r"class 'b': all its images are in one fold \(\d of 2\)"):
        k_folds(make([(0, None)] * 6 + [(1, 5)] * 4), 2)
    folds = k_folds(make([(0, None)] * 9 + [(1, None)] * 9 + [(2, None)] * 2), 3)
    assert sum("no validation images of 'c'" in text for fold in folds for text in fold.warnings) == 1


def test_a_fold_is_named_by_number_and_count() -> None:
    made = dataset([example(i, i % 3) for i in range(30)])
    folds = k_folds(made, 5, seed=2)
    assert [one_fold(made, f"{number}/5", seed=2) for number in range(1, 6)] == folds
    assert [fold.fold for fold in folds] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    for wrong in ("0/5", "6/5", "5", "2/", "a/b", "-1/5", "1.5/5", ""):
        with pytest.raises(ConfigError, match="name one as 2/5"):
            one_fold(made, wrong)
    with pytest.raises(ConfigError, match="needs 2 folds or more"):
        one_fold(made, "1/1")


def test_ten_thousand_images_take_seconds() -> None:
    made = dataset([example(i, i % 3, f"p{i // 3}" if i % 2 else None) for i in range(10_000)])
    begun = time.perf_counter()
    k_folds(made, 5)
    assert time.perf_counter() - begun < 10


def test_the_repository_s_images() -> None:
    made = load_dataset(TISSUE)
    assert made.rule == "as given"
    folds = k_folds(made, 5)
    counts = [Counter(one.label for one in fold.split("val")) for fold in folds]
    total = Counter(one.label for one in made.examples if one.split != "test")
    assert all(abs(count[label] - total[label] / 5) < 1 for count in counts for label in total)
