"""From regions to patches: the only door between images and models."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.colours import Palette
from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Region
from pyrtrav.pyramid.base import Patches
from pyrtrav.selection import Floats, Ints


@runtime_checkable
class Image(Protocol):
    """What a traversal needs of an image: a pyramid, or a turned view of one."""

    @property
    def path(self) -> str: ...
    @property
    def bounds(self) -> Region: ...
    @property
    def mpp(self) -> float | None: ...
    @property
    def channels(self) -> int: ...
    def read_many(
        self, regions: Sequence[Region], size: int | tuple[int, int], /, *, out: NDArray[np.uint8] | None = None
    ) -> Patches: ...


class PatchSampler:
    """Reads the patches of many images; each pyramid is asked once a call, so that it decodes each tile once."""

    def __init__(self, pyramids: Sequence[Image], size: int, *, pinned: bool = False) -> None:
        """``pinned``: into memory from which a GPU takes the patches while other work goes on."""
        self.pyramids, self.size, self.pinned = list(pyramids), size, pinned
        self.palette = Palette(pyramids)

    def __call__(
        self, image: Ints, region: Floats
    ) -> tuple[UInt8[Tensor, "fixation channels size size"], dict[int, PyramidError]]:
        """Return the patches of regions (fixation axis) and, per image that could not be read, why.

        The same region of the same pyramid, as in repeated draws for one image, is read once.
        """
        channels = self.pyramids[0].channels
        patches = torch.empty((len(image), self.size, self.size, channels), dtype=torch.uint8, pin_memory=self.pinned)
        pixels = patches.numpy()
        errors: dict[int, PyramidError] = {}
        by_pyramid: dict[int, list[int]] = {}
        for index, number in enumerate(image.tolist()):
            by_pyramid.setdefault(id(self.pyramids[number]), []).append(index)
        for members in by_pyramid.values():
            pyramid = self.pyramids[int(image[members[0]])]
            try:
                failed = self._read(pyramid, region[members], members, pixels)
            except PyramidError as error:
                failed = [error] * len(members)
            for i, why in zip(members, failed, strict=True):
                if why is not None:
                    errors.setdefault(int(image[i]), why)
        return patches.permute(0, 3, 1, 2), errors

    def _read(
        self, pyramid: Image, region: Floats, members: list[int], pixels: NDArray[np.uint8]
    ) -> list[PyramidError | None]:
        """Read the members' patches into their places; returns what went wrong with each."""
        places: dict[tuple[float, ...], int] = {}
        which = [places.setdefault(tuple(row), len(places)) for row in region.tolist()]
        distinct = [Region(*row) for row in places]
        if len(distinct) == len(region) and members[-1] - members[0] == len(members) - 1:
            return pyramid.read_many(distinct, self.size, out=pixels[members[0] : members[-1] + 1]).errors
        read = pyramid.read_many(distinct, self.size)
        pixels[members] = read.pixels[which]
        return [read.errors[j] for j in which]
