"""What a look added to the prediction is what the prediction lacks without it: checked one look at a time."""

import numpy as np
import pytest
import torch

from pyrtrav.methods.mgnet import Mgnet, MgnetConfig
from pyrtrav.methods.mil import Mil, MilConfig
from pyrtrav.methods.topdown import TopDown, TopDownConfig
from pyrtrav.methods.topdown import contribution as contribution_module
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from tests.samples import TISSUE
from tests.small import SmallEncoder


def logits_without(model: TopDown, trace: Trace, image: int, depth: int, left_out: int | None) -> torch.Tensor:
    """Equation (7) by recursion, one fixation at a time, as the paper has it."""
    cells = model.config.cells
    children = {
        (int(parent), int(cell)): int(child)
        for parent, cell, child in zip(trace.parent, trace.cell, trace.child, strict=True)
        if child >= 0 and trace.depth[parent] < depth
    }

    def value(fixation: int) -> torch.Tensor:
        own = {cell: child for (parent, cell), child in children.items() if parent == fixation}
        vector = trace.vector[fixation]
        if not own:
            return vector
        grid = torch.zeros(1, len(vector), cells, cells)
        for cell, child in own.items():
            if child != left_out:
                grid[0, :, cell // cells, cell % cells] = value(child)
        fine = model.activation(model.aggregate(grid)).flatten()
        merged: torch.Tensor = model.activation(model.merge(torch.cat([vector, fine])))
        return merged

    glance = int(trace.fixations_of(image)[0])
    logits: torch.Tensor = model.classify(value(glance))
    return logits


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_contribution_is_what_the_prediction_lacks_without_a_look(
    shared: bool, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contribution_module, "AT_ONCE", 7)
    torch.manual_seed(depth)
    model = TopDown(TopDownConfig(max_depth=3, share_cells=shared), SmallEncoder(), 3).eval()
    pixels = [np.random.default_rng(i).integers(0, 255, (150, 150, 3), np.uint8) for i in range(3)]
    settings = Settings("sample", depth=3, share_cells=shared, max_fixations=60)
    with torch.inference_mode():
        trace = model.look([ArrayPyramid(p, channels=1) for p in pixels], settings, torch.Generator().manual_seed(1))
        compared = 0
        for image in range(3):
            found = model.contributions(trace, image, depth, label=1)
            fixations = trace.fixations_of(image).tolist()
            assert found[0] is None
            whole = torch.log_softmax(logits_without(model, trace, image, depth, None), 0)[1]
            for fixation, value in zip(fixations[1:], found[1:], strict=True):
                if trace.depth[fixation] > depth:
                    assert value is None
                    continue
                without = torch.log_softmax(logits_without(model, trace, image, depth, fixation), 0)[1]
                assert value == pytest.approx(float(whole - without), abs=1e-5)
                compared += 1
    assert compared > 10


def test_tiles_of_mil_contribute_to_a_weighted_mean() -> None:
    torch.manual_seed(0)
    model = Mil(MilConfig(depth=2, hidden=8), SmallEncoder(), 3).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    with torch.inference_mode():
        trace = model.look([ArrayPyramid(pixels, channels=1)], Settings("all"))
        found = model.contributions(trace, 0, 0, label=2)
        instances = model.adapt(trace.vector)
        weights = torch.softmax(model.attention(instances), 0)
        for tile, value in enumerate(found):
            left = torch.arange(len(instances)) != tile
            without = model.classify((weights[left, None] * instances[left]).sum(0))
            whole = model.classify((weights[:, None] * instances).sum(0))
            expected = torch.log_softmax(whole, 0)[2] - torch.log_softmax(without, 0)[2]
            assert value == pytest.approx(float(expected), abs=1e-5)
    assert len(found) > 4


@pytest.mark.parametrize("depth", [1, 3])
def test_a_glimpse_contributes_what_attention_to_the_others_lacks(depth: int) -> None:
    """A chain without one glimpse, its step skipped and later regions as they were, written out by hand."""
    torch.manual_seed(depth)
    model = Mgnet(MgnetConfig(glimpses=4), SmallEncoder(), 3).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    pixels = [np.random.default_rng(i).integers(0, 255, (90, 70 + i, 3), np.uint8) for i in range(2)]
    with torch.inference_mode():
        trace = model.look([ArrayPyramid(p, channels=1) for p in pixels], Settings("all", depth=3))
        for image, found in enumerate(model.contributions(trace, image, depth, label=2) for image in range(2)):
            own = np.flatnonzero(trace.image == image)
            root, region = trace.roots[image], trace.region[own]
            scale = region[:, 2] / root.width
            centre = (region[:, :2] + region[:, 2:] / 2 - (root.x, root.y)) / root.width * 2 - 1
            place = torch.from_numpy(np.column_stack([scale, centre])).float()
            rows = torch.cat([trace.vector[own], place], dim=1)

            def said(kept: list[int], rows: torch.Tensor = rows) -> float:
                """Equation (3), the last glimpse's row alone: it asks, all that are kept answer."""
                fusion, seen = model.fusion, rows[kept]
                query, key, value = (seen @ part.weight.T for part in (fusion.query, fusion.key, fusion.value))
                weights = torch.softmax(query[-1] @ key.T / seen.shape[1] ** 0.5, 0)
                out = fusion.norm((weights @ value) @ fusion.out.weight.T)
                return float(torch.log_softmax(model.classify(out.clamp(min=0)), 0)[2])

            kept = list(range(depth + 1))
            assert found[0] is None
            for left in kept[1:]:
                expected = said(kept) - said([i for i in kept if i != left])
                assert found[left] == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert found[depth + 1 :] == [None] * (3 - depth)
            assert max(abs(value) for value in found if value is not None) > 0.01


def test_the_evidence_contributes_most() -> None:
    """In the sample with a lesion the look that added most lies on more of it than most others do."""
    tree = Predictor(device="cpu").explain(TISSUE / "val" / "lesion" / "003.tif")
    values = [node.contribution for node in tree.nodes if node.contribution is not None]
    assert tree.nodes[0].contribution is None
    assert len(values) == len(tree.nodes) - 1
    assert tree.label == "lesion"
    assert max(values) > 0.1


def test_classifying_alone_does_not_ask_for_contributions() -> None:
    outcome = Predictor(device="cpu").predict([TISSUE / "val" / "lesion" / "003.tif"])[0]
    assert outcome.tree is not None
    assert all(node.contribution is None for node in outcome.tree.nodes)
