"""The figures of an evaluation, against counting by hand and against scipy."""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats

from pyrtrav.training.bootstrap import _figures, bootstrap_intervals, unit_numbers
from pyrtrav.training.metrics import (
    METRICS,
    class_aurocs,
    classification_metrics,
    confusion_matrix,
    metrics_by_class,
    predicted_classes,
)

Case = tuple[np.ndarray, np.ndarray]


def random_case(seed: int, images: int, classes: int, *, failed: int = 0, ties: bool = False) -> Case:
    """Probabilities that know a little, labels, and perhaps failed images and many equal probabilities."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes)) + 1.2 * (labels[:, None] == np.arange(classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        probabilities = np.round(probabilities * 5) + 1
        probabilities /= probabilities.sum(1, keepdims=True)
    probabilities[random.choice(images, failed, replace=False)] = 0
    return probabilities, labels


def one_hot(labels: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[labels]


CASES: dict[str, Case] = {
    "two classes": random_case(0, 60, 2),
    "five classes": random_case(1, 90, 5),
    "ties": random_case(2, 50, 3, ties=True),
    "failed images": random_case(3, 40, 3, failed=9),
    "failed images and ties": random_case(4, 40, 2, failed=5, ties=True),
    "a class without images": (random_case(5, 30, 4)[0], np.random.default_rng(5).integers(0, 3, 30)),
    "one class present": (random_case(6, 20, 3)[0], np.full(20, 1)),
    "all right": (one_hot([0, 1, 2, 1, 0], 3), np.array([0, 1, 2, 1, 0])),
    "all wrong": (one_hot([1, 2, 0, 2, 1], 3), np.array([0, 1, 2, 1, 0])),
    "all equal": (np.full((6, 3), 1 / 3), np.array([0, 1, 2, 0, 1, 2])),
    "one image": (np.array([[0.3, 0.7]]), np.array([1])),
    "one failed image": (np.zeros((1, 2)), np.array([1])),
    "all failed": (np.zeros((4, 2)), np.array([0, 1, 0, 1])),
    "confidences on the edges of bins": (
        np.array([[0.6, 0.4], [0.8, 0.2], [0.4, 0.6], [1, 0]]),
        np.array([0, 1, 1, 0]),
    ),
}


def counted(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The definitions, image by image."""
    classes = probabilities.shape[1]
    failed = [not any(row) for row in probabilities.tolist()]
    rows = zip(failed, probabilities.tolist(), strict=True)
    said = [None if f else max(range(classes), key=row.__getitem__) for f, row in rows]
    pairs = list(zip(said, labels.tolist(), strict=True))
    recalls, f1s, areas = [], [], []
    for c in range(classes):
        own = [s for s, label in pairs if label == c]
        if own:
            hits, taken = own.count(c), said.count(c)
            recalls.append(hits / len(own))
            f1s.append(2 * hits / (len(own) + taken))
        won = []
        for i, j in itertools.product(range(len(labels)), repeat=2):
            if labels[i] == c and labels[j] != c:
                # A failed image loses every comparison; two failed ones too.
                a, b = probabilities[i, c], probabilities[j, c]
                won.append(0.0 if failed[i] or failed[j] else 1.0 if a > b else 0.5 if a == b else 0.0)
        if won:
            areas.append(sum(won) / len(won))
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, s, label, f in zip(probabilities, said, labels.tolist(), failed, strict=True):
        if not f:
            # The edge belongs to the bin above it: k / 15 is the first confidence of bin k.
            bins.setdefault(math.floor(15 * row.max() + 1e-6), []).append((float(row.max()), s == label))
    gaps = [abs(sum(c - r for c, r in members)) for members in bins.values()]
    alive = len(labels) - sum(failed)
    return {
        "accuracy": sum(s == label for s, label in pairs) / len(pairs),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "auroc": sum(areas) / len(areas) if areas else math.nan,
        "f1": sum(f1s) / len(f1s),
        "calibration_error": sum(gaps) / alive if alive else math.nan,
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_metrics_are_their_definitions(case: Case) -> None:
    found = classification_metrics(*case)
    assert tuple(found) == METRICS
    assert found == pytest.approx(counted(*case), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_resample_is_counted_like_the_images_that_it_draws(case: Case) -> None:
    """Drawing every image once gives the metrics; drawing some of them often gives those of the repeated images."""
    probabilities, labels = case
    figures = _figures(probabilities, labels)
    random = np.random.default_rng(7)
    for draws in [
        np.ones(len(labels), int),
        *random.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), 3),
    ]:
        wanted = classification_metrics(np.repeat(probabilities, draws, axis=0), np.repeat(labels, draws))
        found = {name: float(figures[name](draws[None].astype(float))[0]) for name in METRICS}
        assert found == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def test_auroc_is_the_mann_whitney_statistic() -> None:
    for probabilities, labels in (CASES["five classes"], CASES["ties"]):
        for c, area in enumerate(class_aurocs(probabilities, labels)):
            own, rest = probabilities[labels == c, c], probabilities[labels != c, c]
            u = scipy.stats.mannwhitneyu(own, rest).statistic
            assert area == pytest.approx(u / (len(own) * len(rest)), abs=1e-6)


def test_figures_of_classes_by_hand() -> None:
    """Truth a, a, a, b, b, c; said a, a, b, b, failed, a; class d has no image."""
    said = one_hot([0, 0, 1, 1, 0, 0], 4) * 0.7 + 0.075
    said[4] = 0
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert predicted_classes(said).tolist() == [0, 0, 1, 1, 4, 0]
    assert confusion_matrix(said, labels).tolist() == [[2, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0] * 5]
    a, b, c, d = metrics_by_class(said, labels)
    assert (a.images, a.predicted, a.recall, a.specificity) == (3, 3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (a.precision, a.f1) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (b.recall, b.specificity, b.precision, b.f1) == (0.5, 0.75, 0.5, 0.5)
    assert (c.recall, c.predicted, c.f1) == (0, 0, 0)
    assert math.isnan(c.precision)
    # Against a's three: its b lost to none of them, and its failed one to all.
    assert b.auroc == pytest.approx((3 + 0.5) / 8)
    assert (d.images, d.specificity) == (0, 1)
    assert all(math.isnan(value) for value in (d.recall, d.f1, d.auroc))


def test_intervals_agree_with_scipy() -> None:
    probabilities, labels = random_case(8, 120, 3, failed=4)
    found = bootstrap_intervals(probabilities, labels, seed=1, resamples=4000)

    def accuracy(rows: np.ndarray) -> float:
        return float((predicted_classes(probabilities[rows]) == labels[rows]).mean())

    wanted = scipy.stats.bootstrap(
        (np.arange(120),),
        accuracy,
        method="percentile",
        n_resamples=4000,
        vectorized=False,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found["accuracy"] == pytest.approx(tuple(wanted), abs=0.012)
    metrics = classification_metrics(probabilities, labels)
    for name in METRICS:
        low, high = found[name]
        assert low < high
        # The calibration error of a resample is larger by nature: bins are noisier.
        assert low < metrics[name] < high or name == "calibration_error"


def test_groups_are_drawn_whole() -> None:
    """Ten copies of each image in a group are no more evidence than the image; taken as single ones they seem so."""
    probabilities, labels = random_case(9, 40, 2)
    names = [str(i) for i in range(40)]
    alone = bootstrap_intervals(probabilities, labels, None, seed=3)
    many = np.repeat(probabilities, 10, axis=0), np.repeat(labels, 10)
    grouped = bootstrap_intervals(*many, np.repeat(names, 10).tolist(), seed=3)
    for name in METRICS:
        assert grouped[name] == pytest.approx(alone[name])
    naive = bootstrap_intervals(*many, seed=3)
    assert np.diff(naive["accuracy"]) < 0.5 * np.diff(grouped["accuracy"])
    assert unit_numbers(["p", None, "p", None, "q"], 5).tolist() == [0, 1, 0, 2, 3]


def test_intervals_of_degenerate_data() -> None:
    for name in ("one image", "all right"):
        metrics = classification_metrics(*CASES[name])
        intervals = bootstrap_intervals(*CASES[name])
        assert intervals["accuracy"] == (metrics["accuracy"],) * 2 == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap_intervals(*CASES["one image"])["auroc"])
    assert bootstrap_intervals(*CASES["all failed"])["accuracy"] == (0, 0)
    assert bootstrap_intervals(*CASES["ties"], seed=4) == bootstrap_intervals(*CASES["ties"], seed=4)
    assert bootstrap_intervals(*CASES["ties"], seed=4) != bootstrap_intervals(*CASES["ties"], seed=5)


def test_intervals_do_not_depend_on_how_many_resamples_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bootstrap_intervals(*CASES["two classes"], seed=6)
    monkeypatch.setattr("pyrtrav.training.bootstrap._HELD", 60 * 7)
    assert bootstrap_intervals(*CASES["two classes"], seed=6) == wanted


def test_a_thousand_resamples_are_quick() -> None:
    probabilities, labels = random_case(10, 2000, 4)
    bootstrap_intervals(*CASES["ties"])
    begun = time.process_time()
    bootstrap_intervals(probabilities, labels)
    assert time.process_time() - begun < 10
