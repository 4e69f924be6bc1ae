"""From regions to patches: the only door between images and models."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

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
    def read_many(self, regions: Sequence[Region], size: int | tuple[int, int], /) -> Patches: ...


class PatchSampler:
    """Reads the patches of many images; each pyramid is asked once a call, so that it decodes each tile once."""

    def __init__(self, pyramids: Sequence[Image], size: int) -> None:
        self.pyramids, self.size = list(pyramids), size

    def __call__(
        self, image: Ints, region: Floats
    ) -> tuple[UInt8[Tensor, "fixation channels size size"], dict[int, PyramidError]]:
        """Return the patches of regions (fixation axis) and, per image that could not be read, why.

        The same region of the same pyramid, as in repeated draws for one image, is read once.
        """
        channels = self.pyramids[0].channels
        pixels = np.empty((len(image), self.size, self.size, channels), np.uint8)
        errors: dict[int, PyramidError] = {}
        by_pyramid: dict[int, list[int]] = {}
        for index, number in enumerate(image.tolist()):
            by_pyramid.setdefault(id(self.pyramids[number]), []).append(index)
        for members in by_pyramid.values():
            pyramid = self.pyramids[int(image[members[0]])]
            distinct, inverse = np.unique(region[members], axis=0, return_inverse=True)
            try:
                patches = pyramid.read_many([Region(*row) for row in distinct.tolist()], self.size)
            except PyramidError as error:
                errors.update((int(image[i]), error) for i in members)
                continue
            pixels[members] = patches.pixels[inverse]
            for i, j in zip(members, inverse.tolist(), strict=True):
                failed = patches.errors[j]
                if failed is not None:
                    errors.setdefault(int(image[i]), failed)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), errors
