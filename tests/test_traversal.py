"""What a traversal promises, whatever the model has learned."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.methods.topdown import Location, TopDown, TopDownConfig
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import Traversal
from tests.small import SmallEncoder, random_image


def make_model(seed: int = 0, *, depth: int = 3, shared: bool = True) -> TopDown:
    torch.manual_seed(seed)
    model = TopDown(TopDownConfig(max_depth=depth, share_cells=shared, c_t=10.0), SmallEncoder(), 3)
    with torch.no_grad():
        model.location.conv.weight.mul_(4)
    return model.eval()


IMAGES = [random_image(i, *size) for i, size in enumerate([(64, 64), (64, 40), (37, 64), (64, 64), (9, 9)])]


def look(model: TopDown, images: Sequence[ArrayPyramid], **options: object) -> Trace:
    chosen = Settings(depth=model.max_depth, **options)  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(chosen.seed) for _ in images]
    with torch.no_grad():
        return model.look(images, chosen, generators)


def places(trace: Trace, image: int) -> list[tuple[int, int, int]]:
    own = trace.fixations_of(image)
    return list(zip(trace.depth[own].tolist(), trace.column[own].tolist(), trace.row[own].tolist(), strict=True))


SELECTIONS = [
    {"select": "sample"},
    {"select": "threshold", "tau": (0.25,)},
    {"select": "topk", "k": 2},
    {"select": "budget", "budget": 21},
    {"select": "threshold", "tau": (0.3,), "budget": 12},
    {"select": "all"},
]


@pytest.mark.parametrize("options", SELECTIONS, ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_batches_change_nothing(options: dict[str, object], shared: bool) -> None:
    """Each image alone, all together, and in encoder batches of 7, 64 and 256 give the same looks and beliefs."""
    model = make_model(depth=2, shared=shared)
    together = look(model, IMAGES, share_cells=shared, **options)
    logits = model.believe(together, 2)
    for i, image in enumerate(IMAGES):
        alone = look(model, [image], share_cells=shared, **options)
        assert places(alone, 0) == places(together, i)
        torch.testing.assert_close(model.believe(alone, 2)[0], logits[i], rtol=1e-4, atol=1e-4)
    for batch in (7, 64):
        again = look(model, IMAGES, share_cells=shared, encode_batch=batch, **options)
        assert all(places(again, i) == places(together, i) for i in range(len(IMAGES)))
        torch.testing.assert_close(model.believe(again, 2), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [o for o in SELECTIONS if o["select"] in ("threshold", "topk", "all") and "budget" not in o]
)
def test_sharing_changes_nothing_but_the_cost(options: dict[str, object]) -> None:
    """Under a deterministic selection a cell of two parents looks and decides the same twice."""
    model = make_model()
    shared = look(model, IMAGES, share_cells=True, **options)
    tree = look(model, IMAGES, share_cells=False, **options)
    torch.testing.assert_close(model.believe(shared, 3), model.believe(tree, 3), rtol=1e-5, atol=1e-5)
    for i in range(len(IMAGES)):
        assert set(places(shared, i)) == set(places(tree, i))
        assert len(places(shared, i)) == len(set(places(shared, i))) <= len(places(tree, i))
    assert len(shared.image) < len(tree.image)


@given(budget=st.integers(1, 40), more=st.integers(1, 20), beam=st.integers(1, 20), seed=st.integers(0, 5))
@settings(max_examples=12, deadline=None)
def test_a_budget_is_kept_and_a_smaller_one_is_a_prefix(budget: int, more: int, beam: int, seed: int) -> None:
    model = make_model(seed)
    small = look(model, IMAGES, select="budget", budget=budget, beam=beam)
    large = look(model, IMAGES, select="budget", budget=budget + more, beam=beam)
    for i in range(len(IMAGES)):
        few, many = places(small, i), places(large, i)
        assert len(few) <= budget
        assert many[: len(few)] == few
        # It is used up unless there is nothing left to look at.
        assert len(few) == budget or few == many


def test_a_budget_caps_any_selection_and_says_so() -> None:
    model = make_model()
    free = look(model, IMAGES, select="all")
    capped = look(model, IMAGES, select="all", budget=10)
    bounded = look(model, IMAGES, select="all", max_fixations=10)
    alone = look(model, IMAGES, select="budget", budget=10)
    for i in range(len(IMAGES)):
        total = len(places(free, i))
        for trace in (capped, bounded):
            assert len(places(trace, i)) == min(total, 10)
            assert bool(trace.truncated[i]) == (total > 10)
        assert not alone.truncated[i]


def test_a_budget_above_the_bound_is_cut_by_it() -> None:
    trace = look(make_model(), IMAGES, select="budget", budget=5000, max_fixations=10)
    assert bool(trace.truncated[0])
    assert len(places(trace, 0)) == 10


def test_draws_do_not_depend_on_images_that_are_cut() -> None:
    """One image hits the bound, its neighbours do not: each looks as if it were alone."""
    for seed in range(8):
        options = {"select": "sample", "max_fixations": 8, "seed": seed}
        together = look(make_model(), IMAGES, **options)
        for i, image in enumerate(IMAGES):
            assert places(look(make_model(), [image], **options), 0) == places(together, i)


def test_a_generous_budget_leaves_a_selection_as_it_is() -> None:
    model = make_model()
    free = look(model, IMAGES, select="threshold", tau=(0.25,))
    capped = look(model, IMAGES, select="threshold", tau=(0.25,), budget=4000)
    for i in range(len(IMAGES)):
        assert set(places(free, i)) == set(places(capped, i))
    assert not capped.truncated.any()
    torch.testing.assert_close(model.believe(free, 3), model.believe(capped, 3))


def test_threshold_and_topk_mean_what_they_say() -> None:
    model = make_model()
    trace = look(model, IMAGES, select="threshold", tau=(0.2, 0.25, 0.3))
    tau = np.array([0.2, 0.25, 0.3])[trace.depth[trace.parent]]
    assert (trace.on == (trace.probability > tau)).all()
    trace = look(model, IMAGES, select="topk", k=2)
    for parent in np.unique(trace.parent):
        own = trace.parent == parent
        assert trace.on[own].sum() == min(2, own.sum())
        if own.sum() > 2:
            assert trace.probability[own & trace.on].min() >= trace.probability[own & ~trace.on].max()


def test_everything_is_every_cell_that_holds_image() -> None:
    """A whole image has 1 + 9 + 49 + 225 distinct cells; a small one stops where upsampling would begin."""
    trace = look(make_model(), IMAGES, select="all")
    assert len(places(trace, 0)) == 1 + 9 + 49 + 225
    assert {depth for depth, _, _ in places(trace, 4)} == {0, 1}  # 9 px, patches of 4
    for image, pyramid in enumerate(IMAGES):
        for x, y, width, height in trace.region[trace.image == image]:
            assert x < pyramid.width
            assert x + width > 0
            assert y < pyramid.height
            assert y + height > 0


def test_scores_are_the_best_path_products() -> None:
    trace = look(make_model(), IMAGES[:1], select="sample", seed=3)
    scores = trace.scores()

    def best(fixation: int) -> float:
        into = np.flatnonzero(trace.child == fixation)
        if len(into) == 0:
            return 1.0
        return max(best(int(trace.parent[e])) * float(trace.probability[e]) for e in into)

    for fixation in range(len(trace.image)):
        assert scores[fixation] == pytest.approx(best(fixation))


def test_draws_repeat_with_the_seed() -> None:
    model = make_model()
    first, again = (look(model, IMAGES, select="sample", seed=1) for _ in range(2))
    other = look(model, IMAGES, select="sample", seed=2)
    assert places(first, 0) == places(again, 0)
    assert places(first, 0) != places(other, 0)


def test_a_grid_off_the_lattice_works_unshared() -> None:
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=2, cells=5, side=0.35, share_cells=False, c_t=4.0)
    model = TopDown(config, SmallEncoder(), 2)
    trace = look(model, IMAGES[:1], select="topk", k=2, share_cells=False)
    assert len(places(trace, 0)) == 1 + 2 + 4
    for edge in np.flatnonzero(trace.on):
        px, py, pw, _ = trace.region[trace.parent[edge]]
        x, y, w, _ = trace.region[trace.child[edge]]
        assert w == pytest.approx(0.35 * pw)
        column, row = trace.cell[edge] % 5, trace.cell[edge] // 5
        assert (x, y) == pytest.approx((px + column * Grid(5, 0.35).stride * pw, py + row * Grid(5, 0.35).stride * pw))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "tresh"}, "unknown selection"),
        ({"select": "topk"}, "needs k"),
        ({"select": "threshold", "depth": 2}, "needs tau"),
        ({"select": "budget"}, "needs a budget"),
        ({"select": "all", "budget": 0}, "1 or more"),
        ({"select": "threshold", "tau": (1.5,)}, "between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**options)  # type: ignore[arg-type]


def test_an_image_that_fails_leaves_and_the_others_stay(tmp_path: object) -> None:
    class Broken(ArrayPyramid):
        """Fails below the glance."""

        def read_many(self, regions, size, **kw):  # type: ignore[no-untyped-def]
            patches = super().read_many(regions, size, **kw)
            if regions[0].width < 64:
                from pyrtrav.errors import CorruptImageError

                patches.errors[-1] = CorruptImageError("x", "gone", level=0, column=1, row=2)
            return patches

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    model = make_model()
    trace = look(model, [IMAGES[0], Broken(pixels, channels=1), IMAGES[1]], select="all")
    alone = look(model, [IMAGES[0], IMAGES[1]], select="all")
    assert [error is None for error in trace.errors] == [True, False, True]
    assert trace.depth[trace.image == 1].tolist() == [0]
    torch.testing.assert_close(model.believe(trace, 3)[[0, 2]], model.believe(alone, 3))


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_cut_is_no_decision(shared: bool) -> None:
    """Beyond ``max_fixations`` a drawn cell is not followed; that is neither a yes nor a no of the policy."""
    torch.manual_seed(0)
    traversal = Traversal(SmallEncoder(), Location(5, (2, 2), Grid(), 0.5)).double()
    settings = Settings("sample", depth=3, share_cells=shared, max_fixations=20)
    drawn: list[np.ndarray] = []

    def draws(trace: Trace, parents: np.ndarray, cell: np.ndarray) -> np.ndarray:
        drawn.append(np.random.default_rng(len(drawn)).random(len(parents)))
        return drawn[-1]

    with torch.no_grad():
        trace = traversal([random_image(0, 64, 64)], settings, draws)
    assert trace.truncated.all()
    wanted = np.concatenate(drawn) < trace.probability
    assert (trace.on <= wanted).all()
    cut = wanted & ~trace.on
    assert cut.any()
    p = trace.probability
    by_hand = np.where(trace.on, np.log(p), np.log1p(-p))[~cut].sum()
    assert trace.decision_log_prob(3).item() == pytest.approx(by_hand)
    assert len(trace.decision_logit(3)) == (~cut).sum()
    assert trace.until(3).decision_log_prob(3).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("size", [(108, 12), (324, 36), (12, 108)])
def test_a_cell_that_rounding_alone_puts_into_the_image_is_none(size: tuple[int, int]) -> None:
    """Thirds are no binary fractions: cells that begin where the image ends."""
    traversal = Traversal(SmallEncoder(), Location(5, (2, 2), Grid(3, 1 / 3), 0.5))
    with torch.no_grad():
        trace = traversal([random_image(0, *size)], Settings("all", depth=2))
    assert np.bincount(trace.depth).tolist() == [1, 3, 9]
