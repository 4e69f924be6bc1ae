"""What surrounds a place, as far as the look that led there has shown it: nothing is read for it again.

The parent's patch shows a square of twice the cell's side, at the scale of the cell halved. Moved so that the cell is
in the middle, it is the cell's **context**: a patch of twice the side, partly unknown, since the parent does not show
what lies beyond its own edge.
"""

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional

from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Grid
from pyrtrav.selection import Ints


class ParentContext:
    """Keeps the patches of a run's fixations, and makes their children's context of them."""

    def __init__(self, grid: Grid, size: int) -> None:
        """
        Args:
            grid: cells of half their parent's side.
            size: of a patch, in pixels.

        Raises:
            ConfigError: cells do not begin where pixels of the parent's patch do.
        """
        self.size = size
        self._shifts = context_shifts(grid, size)
        self._cells = grid.cells
        self._seen: list[Tensor] = []
        self._patches: list[Tensor] = []
        self._step: Ints = np.zeros(0, np.int64)
        self._row: Ints = np.zeros(0, np.int64)

    def keep(self, place: Ints) -> None:
        """Say which of the patches seen since the last time are those of the fixations that the trace took since."""
        self._step = np.concatenate([self._step, np.full(len(place), len(self._patches))])
        self._row = np.concatenate([self._row, place])
        self._patches.append(torch.cat(self._seen) if len(self._seen) > 1 else self._seen[0])
        self._seen = []

    def around(
        self, patches: Shaped[Tensor, "fixation channels size size"], parent: Ints, cell: Ints
    ) -> Shaped[Tensor, "fixation known_and_channels size size"]:
        """Take in patches; return their context, and in a last channel 1 (255 in bytes) where that is known.

        Args:
            patches: their own, in 0..1 or bytes.
            parent: a fixation that was kept, or -1 for none: then nothing is known but the patch itself.
            cell: which cell of its parent each is.
        """
        self._seen.append(patches)
        count, channels, size, _ = patches.shape
        found = patches.new_zeros(count, channels + 1, size, size)
        full = 1 if patches.is_floating_point() else 255
        alone = np.flatnonzero(parent < 0)
        if len(alone):
            middle = slice(size // 4, size // 4 + size // 2)
            rows = torch.from_numpy(alone).to(patches.device)
            found[rows, :channels, middle, middle] = _halved(patches[rows])
            found[rows, channels, middle, middle] = full
        for number in np.unique(cell[parent >= 0]).tolist():
            own = np.flatnonzero((cell == number) & (parent >= 0))
            (above, here), (before, there) = (
                _overlap(self._shifts[place], size) for place in divmod(number, self._cells)
            )
            rows = torch.from_numpy(own).to(patches.device)
            seen = self._of(parent[own])[:, :, above, before]
            found[rows, :channels, here, there] = seen
            found[rows, channels, here, there] = full
        return found

    def _of(self, fixations: Ints) -> Tensor:
        """The patches of fixations."""
        found = self._patches[0].new_empty(len(fixations), *self._patches[0].shape[1:])
        for step in np.unique(self._step[fixations]).tolist():
            own = np.flatnonzero(self._step[fixations] == step)
            kept = self._patches[step]
            rows = torch.from_numpy(self._row[fixations[own]]).to(kept.device)
            found[torch.from_numpy(own).to(kept.device)] = kept[rows]
        return found


def context_shifts(grid: Grid, size: int) -> list[int]:
    """Return, for each of a grid's columns (or rows), at what pixel of the parent's patch a context begins.

    Raises:
        ConfigError: cells are not half as large as their parent, or begin between two of its pixels.
    """
    if grid.side != 0.5:
        raise ConfigError(f"context=parent needs cells of half their parent's side, not {grid.side}")
    exact = (np.arange(grid.cells) * grid.stride - 0.25) * size
    whole = np.rint(exact).astype(np.int64)
    if size % 4 or np.abs(exact - whole).max() > 1e-6:
        raise ConfigError(
            f"context=parent needs cells that begin at whole pixels of their parent's patch: {grid.cells} cells along "
            f"{size} px do not; take another base resolution, or 3 cells"
        )
    shifts: list[int] = whole.tolist()
    return shifts


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """What of a parent's patch a context that begins at ``shift`` shows, and where in the context that lies."""
    first, last = max(shift, 0), min(shift + size, size)
    return slice(first, last), slice(first - shift, last - shift)


def _halved(patches: Tensor) -> Tensor:
    """Means over 2 x 2 pixels, as they are read: bytes are rounded half to even."""
    if patches.is_floating_point():
        return functional.avg_pool2d(patches, 2)
    return functional.avg_pool2d(patches.float(), 2).round().to(patches.dtype)
