"""The lesson from hints: which places it looks at, what it asks of them, and that it teaches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Region
from pyrtrav.methods.topdown import METHOD, TopDown, TopDownConfig
from pyrtrav.methods.topdown.guidance import asked_for, hints_of
from pyrtrav.methods.topdown.lesson import LOOKS, HintLesson, draw_places
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.training.augment import View
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.small import SmallEncoder
from tests.toy_images import SMALL, make_images


def spotted(seed: int, side: int = 64) -> View:
    """Noise with a bright spot, and a hint there; in a frame that is larger."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (side // 2, side), np.uint8)
    x, y = int(random.integers(0, side - 6)), int(random.integers(0, side // 2 - 6))
    pixels[y : y + 6, x : x + 6] = 255
    frame = Region(-3.0, -side / 3, side * 1.1, side * 1.1)
    return View(ArrayPyramid(pixels, channels=1), 4, 0, False, hints=[Region(x, y, 6, 6)], frame=frame)


def make_model(max_depth: int = 3) -> TopDown:
    torch.manual_seed(0)
    return TopDown(TopDownConfig(max_depth=max_depth, c_t=6.0), SmallEncoder(), 2)


def test_most_places_show_a_hint_and_all_show_the_image() -> None:
    model, views = make_model(), [spotted(seed) for seed in range(40)]
    bare = View(ArrayPyramid(np.zeros((64, 64), np.uint8), channels=1), 4, 0, False)
    images = [*views, bare]
    places = draw_places(model.traversal, images, hints_of(images), 3, torch.Generator().manual_seed(1))
    assert set(places.image.tolist()) == set(range(40))
    with torch.no_grad():
        trace = model.traversal.glimpse(images, places, 3)
    assert trace.depth.max() == 3
    x, y, width, height = trace.region.T
    bounds = np.array([[b.x, b.y, b.right, b.bottom] for b in (images[i].bounds for i in trace.image)]).T
    assert (np.minimum(x + width, bounds[2]) - np.maximum(x, bounds[0]) > 0).all()
    assert (np.minimum(y + height, bounds[3]) - np.maximum(y, bounds[1]) > 0).all()
    deep = trace.depth >= 2
    shown = asked_for(trace.region, trace.image, hints_of(images))[deep].mean()
    # Two of three are drawn to show one; of the others some do by chance.
    assert 0.62 < shown < 0.9
    assert 0.2 < (trace.depth == 3).mean() < 0.5
    assert trace.depth.min() == 1
    assert len(trace.image) <= 40 * LOOKS


def test_the_loss_is_that_of_the_places() -> None:
    model, views, labels = make_model(), [spotted(seed) for seed in range(3)], torch.tensor([1, 0, 1])
    loss, metrics, trace = HintLesson(3, 2.0)(model, views, labels, torch.Generator().manual_seed(2))
    asked, told = [], []
    for i, (image, depth) in enumerate(zip(trace.image.tolist(), trace.depth.tolist(), strict=True)):
        box, (x, y, side, _) = views[image].hints[0], trace.region[i]
        patch = torch.from_numpy(views[image].read_many([Region(*trace.region[i])], 4).pixels[0]).permute(2, 0, 1) / 255
        seen = model.encoder(patch[None])

        def shows(left: float, top: float, width: float, box: Region = box) -> bool:
            centre = box.x + box.width / 2, box.y + box.height / 2
            held = [
                max(0.0, min(start + width, first + box.width) - max(start, first)) / min(width, box.width)
                for start, first in ((left, box.x), (top, box.y))
            ]
            centred = left <= centre[0] < left + width and top <= centre[1] < top + width
            return centred or held[0] * held[1] >= 0.5

        if depth > 0 and shows(x, y, side):
            told.append(functional.cross_entropy(model.classify(seen.vector)[0], labels[image]))
        if depth < 3:
            missed = torch.zeros(())
            for cell, logit in enumerate(model.location.logits(seen.map)[0]):
                left, top = x + cell % 3 * side / 4, y + cell // 3 * side / 4
                if left + side / 2 <= 1e-9 or top + side / 2 <= 1e-9 or left >= 64 - 1e-9 or top >= 32 - 1e-9:
                    continue
                wanted = shows(left, top, side / 2)
                missed = missed - (2.0 * functional.logsigmoid(logit) if wanted else functional.logsigmoid(-logit))
            asked.append(missed)
    assert metrics["hint_loss"] == pytest.approx(torch.stack(asked).mean().item(), rel=1e-4)
    expected = torch.stack(asked).mean() + torch.stack(told).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_it_teaches_where_to_look_before_any_traversal() -> None:
    """After the lesson the policy's probabilities are far higher for cells that hold the spot than for others."""
    model, views = make_model(), [spotted(seed) for seed in range(16)]
    lesson, optimizer = HintLesson(3, 1.0), torch.optim.Adam(model.parameters(), 0.03)
    labels, draws = torch.tensor([0, 1] * 8), torch.Generator().manual_seed(3)
    for _ in range(250):
        optimizer.zero_grad()
        loss, _, _ = lesson(model, views, labels, draws)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        trace = model.look(views, Settings("all", depth=3))
    asked = asked_for(trace.cell_region, trace.image[trace.parent], hints_of(views))
    # Above, a spot is no pixel large.
    near = trace.depth[trace.parent] == 2
    assert trace.probability[asked & near].mean() > 3 * trace.probability[~asked & near].mean()
    assert trace.probability[asked & near].mean() > 0.5


def test_without_hints_there_is_nothing_to_learn() -> None:
    model = make_model()
    views = [View(ArrayPyramid(np.zeros((64, 64), np.uint8), channels=1), 4, 0, False)]
    loss, metrics, trace = HintLesson(3, 1.0)(model, views, torch.tensor([0]), torch.Generator())
    assert (float(loss), metrics, len(trace.image)) == (0.0, {}, 0)


def test_it_comes_first_and_needs_a_lattice() -> None:
    names = [stage.name for stage in METHOD.stages(TopDownConfig(lesson=True, gradual=True))]
    assert names == ["lesson", "depth 1", "depth 2"]
    assert [stage.name for stage in METHOD.stages(TopDownConfig())] == ["depth 2"]
    with pytest.raises(ConfigError, match="lesson needs a whole 1/side"):
        TopDownConfig(lesson=True, side=0.4, share_cells=False)


def test_without_hints_a_lesson_is_refused(tmp_path: Path) -> None:
    dataset = load_dataset(make_images(tmp_path / "images"))
    card, config = plan_training(dataset, assignments=[*SMALL, "lesson=true", "epochs=1"])
    with pytest.raises(ConfigError, match="name some with --regions"):
        Trainer(dataset, card, config, tmp_path / "run", device="cpu")
