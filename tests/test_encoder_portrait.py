"""Pictures of encoders: how far they see, and the scales that they learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.portrait import portrait
from pyrtrav.explain.encoder_chart import save_encoder_chart, square_of_mass


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_nothing_is_seen_beyond_the_receptive_field() -> None:
    seen = portrait(build_encoder("mnist-m3")).seen
    assert seen.shape == (14, 14)
    assert seen.max() == 1
    one_convolution = build_encoder("mnist-m1")
    seen = portrait(one_convolution).seen.numpy()
    rows, columns = (np.flatnonzero(seen.sum(axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 <= one_convolution.receptive_field + 1  # and the pooling's one pixel more
    assert np.ptp(columns) + 1 <= one_convolution.receptive_field + 1


def test_mixing_weights_are_the_encoders() -> None:
    encoder = build_encoder("multires", base_resolution=32, blocks=2, filters=8)
    found = portrait(encoder)
    assert found.mixing is not None
    assert torch.equal(found.mixing, encoder.mixing_table())
    torch.testing.assert_close(found.mixing.sum(1), torch.ones(2, dtype=torch.float64))
    assert found.outputs == encoder.outputs
    assert portrait(build_encoder("residual", base_resolution=16, widths=[4, 8])).mixing is None


def test_normalised_features_have_a_field_though_their_sum_has_none() -> None:
    encoder = build_encoder("multires", base_resolution=32)
    seen = portrait(encoder).seen
    exact = portrait(encoder.double()).seen
    torch.testing.assert_close(seen, exact, rtol=0, atol=1e-3)  # not rounding errors


def test_a_portrait_changes_nothing_and_repeats() -> None:
    encoder = build_encoder("residual", base_resolution=16, widths=[4, 8]).train()
    first, again = portrait(encoder).seen, portrait(encoder).seen
    assert torch.equal(first, again)
    assert encoder.training
    assert all(weight.grad is None for weight in encoder.parameters())


@pytest.mark.parametrize(("column", "row", "width"), [(3, 7, 1), (0, 0, 4), (16, 16, 4), (8, 2, 6)])
def test_the_square_holds_the_weight(column: int, row: int, width: int) -> None:
    seen = np.zeros((20, 20))
    seen[row : row + width, column : column + width] = 1
    left, top, side = square_of_mass(seen)
    assert width - 1 <= side <= width + 1
    assert seen[top : top + side, left : left + side].sum() >= 0.95 * width**2


def test_charts_are_drawn(tmp_path: Path) -> None:
    encoder = build_encoder("multires", base_resolution=32, blocks=3, filters=8)
    found = portrait(encoder)
    assert found.mixing is not None
    save_encoder_chart(found.seen.numpy(), found.mixing.numpy(), found.outputs, tmp_path / "a.png", "multires")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] > 1000
        assert picture.text["Title"] == "multires"  # type: ignore[attr-defined]
    save_encoder_chart(found.seen.numpy(), None, (), tmp_path / "a.pdf", "multires")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
