"""The location modules: which part of a map decides about a cell."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyrtrav.encoders import build_encoder
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.methods.topdown import LocalLocation, Location, TopDown, TopDownConfig


@given(cell=st.integers(0, 8), seed=st.integers(0, 100))
def test_a_local_decision_follows_from_the_cells_own_part(cell: int, seed: int) -> None:
    """Cells are half as wide as the map and a quarter apart; what lies outside of one changes nothing."""
    policy = LocalLocation(5, (8, 8), Grid(), 0.2)
    random = torch.Generator().manual_seed(seed)
    map_, other = torch.rand(2, 1, 5, 8, 8, generator=random)
    row, column = 2 * (cell // 3), 2 * (cell % 3)
    other[..., row : row + 4, column : column + 4] = map_[..., row : row + 4, column : column + 4]
    before, after = policy.logits(map_)[0], policy.logits(other)[0]
    assert before[cell].item() == pytest.approx(after[cell].item(), abs=1e-6)
    assert (before - after).abs().sum() > 1e-3


def test_what_looks_alike_is_decided_alike() -> None:
    """One thing in nine places: each time the cell around it has the same logit, for a bias that starts the same."""
    policy = LocalLocation(2, (4, 4), Grid(), 0.2)
    thing = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0))
    found = []
    for cell in range(9):
        map_ = torch.zeros(1, 2, 4, 4)
        row, column = cell // 3, cell % 3
        map_[0, :, row : row + 2, column : column + 2] = thing
        found.append(policy.logits(map_)[0, cell])
    torch.testing.assert_close(torch.stack(found), found[0].expand(9))
    assert sum(weight.numel() for weight in policy.parameters()) == 2 * 2 * 2 + 9


@pytest.mark.parametrize("kind", [Location, LocalLocation])
def test_every_cell_starts_with_the_given_probability(kind: type[Location | LocalLocation]) -> None:
    policy = kind(3, (4, 4), Grid(), 0.2)
    torch.testing.assert_close(torch.sigmoid(policy.logits(torch.zeros(2, 3, 4, 4))), torch.full((2, 9), 0.2))


def test_thirds_and_sevenths_divide_too() -> None:
    for cells, length in ((3, 9), (7, 7)):
        policy = LocalLocation(2, (length, length), Grid(cells, 1 / cells), 0.2)
        assert policy.logits(torch.zeros(1, 2, length, length)).shape == (1, cells * cells)


def test_a_map_that_cells_cannot_divide_is_refused() -> None:
    """The paper's 3 x 3 map of M3 has no halves."""
    with pytest.raises(ConfigError, match="map of 3 x 3"):
        TopDown(TopDownConfig(location="local"), build_encoder("mnist-m3"), 2)
    assert isinstance(TopDown(TopDownConfig(location="local"), build_encoder("imagenet-m2"), 2).location, LocalLocation)
