"""From regions to patches: the only door between images and models."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from pyrtrav.colours import Palette
from pyrtrav.errors import ConfigError, PyramidError
from pyrtrav.geometry import Region, root_region
from pyrtrav.pyramid.base import Patches
from pyrtrav.selection import Floats, Ints
from pyrtrav.tensor_image import TensorImage
from pyrtrav.trace import Trace


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
    ) -> tuple[Shaped[Tensor, "fixation channels size size"], dict[int, PyramidError]]:
        """Return the patches of regions (fixation axis), as bytes, and per place on it why one could not be read."""
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
            errors |= {i: why for i, why in zip(members, failed, strict=True) if why is not None}
        # They are encoded with the others, and statistics of a batch must not depend on what was in this memory.
        pixels[list(errors)] = 0
        return patches.permute(0, 3, 1, 2), errors

    def _read(
        self, pyramid: Image, region: Floats, members: list[int], pixels: NDArray[np.uint8]
    ) -> list[PyramidError | None]:
        """Read the members' patches into their places; returns what went wrong with each."""
        regions = [Region(*row) for row in region.tolist()]
        first, last = members[0], members[-1] + 1
        if last - first == len(members):
            return pyramid.read_many(regions, self.size, out=pixels[first:last]).errors
        read = pyramid.read_many(regions, self.size)
        pixels[members] = read.pixels
        return read.errors


class TensorSampler(PatchSampler):
    """Reads patches with a gradient that goes back to the pixels."""

    def __call__(
        self, image: Ints, region: Floats
    ) -> tuple[Shaped[Tensor, "fixation channels size size"], dict[int, PyramidError]]:
        """As ``PatchSampler``, but in 0..1; no image can fail here."""
        parts, order = [], []
        for number in np.unique(image).tolist():
            own = np.flatnonzero(image == number)
            source = self.pyramids[number]
            assert isinstance(source, TensorImage)
            parts.append(source.read_tensors([Region(*row) for row in region[own].tolist()], self.size))
            order.append(own)
        patches = torch.cat(parts)
        return patches[torch.from_numpy(np.argsort(np.concatenate(order))).to(patches.device)], {}


def read_block(image: Image, region: Region, size: tuple[int, int]) -> Shaped[Tensor, "one channels height width"]:
    """Return one patch of ``size`` (width, height): bytes, or in 0..1 where the image's pixels want a gradient.

    Raises:
        PyramidError: it cannot be read.
    """
    if isinstance(image, TensorImage):
        return image.read_tensors([region], size)
    patches = image.read_many([region], size)
    if patches.errors[0] is not None:
        raise patches.errors[0]
    return torch.from_numpy(patches.pixels).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True)
class StackedImage:
    """One image of a stack, as far as a traversal needs to know it."""

    bounds: Region
    mpp: None = None


class ImageStack(Sequence[StackedImage]):
    """Square images in memory, on any device, which a traversal reads there: for small images by the thousand.

    Sides are a whole power of two times the patches' side, and so are those of the regions that are read. Patches are
    the means that files give too, but are not rounded to whole numbers.
    """

    def __init__(self, pixels: Float[Tensor, "image channels height width"], *, samples: int = 1) -> None:
        """Hold images in 0..255, each of which stands ``samples`` times in the sequence, in a run."""
        self.pixels, self.samples = pixels, samples
        side = float(pixels.shape[-1])
        self._image = StackedImage(Region(0.0, 0.0, side, side))

    def __len__(self) -> int:
        return len(self.pixels) * self.samples

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        numbers = range(len(self))[index]
        return [self._image] * len(numbers) if isinstance(numbers, range) else self._image

    def __iter__(self) -> Iterator[StackedImage]:
        return iter([self._image] * len(self))

    def repeated(self, samples: int) -> "ImageStack":
        """Return the same images, each ``samples`` times."""
        return ImageStack(self.pixels, samples=samples)


class StackSampler:
    """Cuts patches out of a stack, on its device."""

    def __init__(self, images: ImageStack, size: int) -> None:
        side = images.pixels.shape[-1]
        halvings = math.log2(side / size)
        if images.pixels.shape[-2] != side or halvings < 0 or not halvings.is_integer():
            raise ConfigError(f"stacked images have sides of {size} x 2^k, not {images.pixels.shape[-2]} x {side}")
        self.size, self._samples = size, images.samples
        self.palette = Palette(())
        level = images.pixels / 255
        self._levels = [level.permute(0, 2, 3, 1)]
        for _ in range(int(halvings)):
            level = torch.nn.functional.avg_pool2d(level, 2)
            self._levels.append(level.permute(0, 2, 3, 1))

    def __call__(
        self, image: Ints, region: Floats
    ) -> tuple[Shaped[Tensor, "fixation channels size size"], dict[int, PyramidError]]:
        """As ``PatchSampler``, but in 0..1; no image can fail here.

        Raises:
            ConfigError: a region is no power of two times as large as a patch.
        """
        halvings = np.log2(region[:, 2] / self.size)
        number = np.rint(halvings).astype(np.int64)
        if np.abs(halvings - number).max(initial=0) > 1e-6 or number.min(initial=0) < 0:
            raise ConfigError("images in memory are read at whole halvings of their side; use cells of side 0.5")
        first, source = self._levels[0], image // self._samples
        patches = first.new_empty(len(image), self.size, self.size, first.shape[3])
        for level in np.unique(number).tolist():
            own = np.flatnonzero(number == level)
            corner = region[own, :2] / 2**level
            whole = np.rint(corner)
            if np.abs(corner - whole).max() < 1e-6:
                found = self._cut(level, source[own], whole.astype(np.int64), self.size)
            else:
                found = self._between(source[own], region[own, :2], 2**level)
            patches[torch.from_numpy(own).to(first.device)] = found
        return patches.permute(0, 3, 1, 2), {}

    def _between(self, source: Ints, corner: Floats, step: int) -> Tensor:
        """Squares of patch pixels, each ``step`` pixels of the image wide, that begin between two of the level's."""
        whole = np.floor(corner + 1e-6)
        wide = self._cut(0, source, whole.astype(np.int64), self.size * step + 1)
        # Between two pixels of the image the mean over an area is that of both, by their shares.
        right, below = torch.from_numpy((corner - whole).clip(min=0)).to(wide)[:, :, None, None, None].unbind(1)
        rows = torch.lerp(wide[:, :-1], wide[:, 1:], below)
        fine = torch.lerp(rows[:, :, :-1], rows[:, :, 1:], right)
        return torch.nn.functional.avg_pool2d(fine.permute(0, 3, 1, 2), step).permute(0, 2, 3, 1)

    def _cut(self, level: int, source: Ints, corner: Ints, size: int) -> Tensor:
        """Squares (place, row, column, channel) of a level's pixels; those beyond the edge are the edge's."""
        pixels = self._levels[level]
        place = torch.from_numpy(np.stack([source, corner[:, 1], corner[:, 0]])).to(pixels.device)
        along = torch.arange(size, device=pixels.device)
        stacked, top, left = place[:, :, None, None]
        rows = (top + along[:, None]).clamp(max=pixels.shape[1] - 1)
        columns = (left + along).clamp(max=pixels.shape[2] - 1)
        return pixels[stacked, rows, columns]


Images = Sequence[Image] | ImageStack
"""What a traversal takes."""


def root_of(image: Image | StackedImage, base_resolution: int) -> Region:
    """Return what the glance shows: the square around the image, or the frame that a view has of its own."""
    frame: Region | None = getattr(image, "frame", None)
    return root_region(image.bounds, base_resolution) if frame is None else frame


def repeat_images(images: Images, samples: int) -> Images:
    """Return every image ``samples`` times, in runs."""
    if isinstance(images, ImageStack):
        return images.repeated(samples)
    return [image for image in images for _ in range(samples)]


def sources(images: Images) -> Ints:
    """Return a number for each image that is equal where the image is the same one."""
    if isinstance(images, ImageStack):
        return np.arange(len(images)) // images.samples
    return np.unique([id(image) for image in images], return_inverse=True)[1]


def make_sampler(images: Images, size: int, device: torch.device) -> PatchSampler | StackSampler:
    """Return what reads patches of ``size`` pixels for a model on the device."""
    if isinstance(images, ImageStack):
        return StackSampler(images, size)
    if any(isinstance(image, TensorImage) for image in images):
        return TensorSampler(images, size)
    return PatchSampler(images, size, pinned=device.type == "cuda")


def read_ahead(
    sampler: PatchSampler | StackSampler,
    trace: Trace,
    image: Ints,
    region: Floats,
    count: int,
    dtype: torch.dtype,
    images_at: Callable[[int], Iterable[int]] | None = None,
) -> Iterator[Tensor]:
    """Yield the patches ``count`` at a time, as an encoder takes them: on the trace's device, in their images' colours.

    The next ones are read meanwhile. The trace gets the time spent waiting and the errors of images that cannot be
    read.

    Args:
        dtype: of the encoder's weights.
        images_at: which images look at a place of the axis; by default the one of ``image``.
    """

    def read(start: int) -> tuple[Tensor, dict[int, PyramidError]]:
        return sampler(image[start : start + count], region[start : start + count])

    with ThreadPoolExecutor(1, thread_name_prefix="pyrtrav-read") as reader:
        # What comes first is waited for anyway: a single chunk starts no thread.
        ahead: Future[tuple[Tensor, dict[int, PyramidError]]] | None = None
        for start in range(0, len(image), count):
            begun = time.perf_counter()
            patches, errors = read(start) if ahead is None else ahead.result()
            trace.seconds["read"] += time.perf_counter() - begun
            ahead = reader.submit(read, start + count) if start + count < len(image) else None
            for index, error in errors.items():
                place = start + index
                for number in (int(image[place]),) if images_at is None else images_at(place):
                    trace.errors[number] = trace.errors[number] or error
            begun = time.perf_counter()
            there = patches.to(trace.device, non_blocking=True)
            painted = sampler.palette(there, image[start : start + count], dtype)
            trace.seconds["encode"] += time.perf_counter() - begun
            yield painted
