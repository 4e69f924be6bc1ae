"""Glimpses: patches of regions anywhere and of any size, sampled so that a gradient says where to look instead.

Bilinear sampling as in "Spatial transformer networks": what a sample shows is a function of where it lies. A glimpse of
a pyramid reads one window, at the scale of its region; its values and gradients are those of sampling the whole image
at that scale in memory.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from pyrtrav.errors import ConfigError, PyramidError
from pyrtrav.sampling import Images, ImageStack, make_sampler, root_of
from pyrtrav.selection import Floats, Ints

Errors = dict[int, PyramidError]


class GlimpseSampler:
    """Samples square regions of images as patches of ``size`` pixels.

    A region that is its image's root is sampled from the centre of its first pixel to that of its last in equal steps,
    a smaller one likewise in its part ("corners aligned"). Beside the root the edge is repeated; beside an image within
    its root is background.
    """

    def __init__(self, images: Images, size: int, device: torch.device, *, by_scale: bool = True) -> None:
        """Take images to sample.

        Args:
            images: all gray or all in colour.
            size: samples along each side of a glimpse.
            device: where glimpses are wanted.
            by_scale: sample the means of squares of 2^k pixels, the largest that are no larger than the distance of
                samples; else single pixels, however far apart samples are, which only images in memory allow.
        """
        if not by_scale and not isinstance(images, ImageStack):
            raise ConfigError("single pixels of a whole slide are too many to read; sample files by scale")
        self.images, self.size, self.device, self.by_scale = images, size, device, by_scale
        roots = [root_of(image, size) for image in images]
        self._root = np.array([(root.x, root.y, root.width) for root in roots]).reshape(-1, 3)
        # As many pixels as a glimpse can need: samples are less than two of them apart.
        self._window = 2 * size + 2
        if not isinstance(images, ImageStack):
            self._sampler = make_sampler(images, self._window, device)

    def __call__(
        self, image: Ints, region: Float[Tensor, "glimpse 4"]
    ) -> tuple[Float[Tensor, "glimpse channels size size"], Errors]:
        """Return the samples in 0..1, and per glimpse why its image could not be read; such a glimpse is black.

        Args:
            image: which one each glimpse looks at.
            region: left, top, width and height in level-0 pixels; a gradient goes back to it.
        """
        step = self._steps(region.detach().double().cpu().numpy())
        root = self._root[image]
        # Pixels are counted from a whole level-0 pixel, so that those of step 1 are the stored ones.
        origin = np.floor(root[:, :2])
        pixel = _pixels(region, root, origin, step, self.size)
        if isinstance(self.images, ImageStack):
            return self._of_stack(self.images, image, pixel, step), {}
        return self._of_pyramids(image, pixel, origin, step)

    def _steps(self, region: Floats) -> Floats:
        """Side of the pixels that are sampled, in level-0 pixels (glimpse axis)."""
        if not self.by_scale:
            return np.ones(len(region))
        return np.asarray(2.0 ** np.floor(np.log2(np.maximum(region[:, 2] / self.size, 1.0)) + 1e-9))

    def _of_pyramids(self, image: Ints, pixel: Tensor, origin: Floats, step: Floats) -> tuple[Tensor, Errors]:
        """Read one window a glimpse, and sample it."""
        first = pixel.detach().amin(2).floor()
        corner = origin + first.cpu().numpy() * step[:, None]
        side = self._window * step
        windows, errors = self._sampler(image, np.stack([*corner.T, side, side], axis=1))
        dtype = windows.dtype if windows.is_floating_point() else torch.float32
        painted = self._sampler.palette(windows.to(self.device, non_blocking=True), image, dtype)
        painted = painted if painted.is_floating_point() else painted.float() / 255
        dead = torch.tensor([number in errors for number in range(len(image))], device=self.device)
        found = _sample(painted, pixel.to(self.device) - first.to(self.device)[:, :, None])
        return found.masked_fill(dead[:, None, None, None], 0.0), errors

    def _of_stack(self, images: ImageStack, image: Ints, pixel: Tensor, step: Floats) -> Tensor:
        """Sample the levels of images in memory."""
        parts, order = [], []
        for side in np.unique(step).tolist():
            own = np.flatnonzero(step == side)
            level = avg_pool2d(images.pixels / 255, int(side))
            source = torch.from_numpy(image[own] // images.samples).to(level.device)
            place = pixel[torch.from_numpy(own).to(pixel.device)].to(level.device)
            parts.append(_sample(level[source], place))
            order.append(own)
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        return torch.cat(parts)[back.to(images.pixels.device)]


def _pixels(
    region: Float[Tensor, "glimpse 4"], root: Floats, origin: Floats, step: Floats, size: int
) -> Float[Tensor, "glimpse axis size"]:
    """Return where samples lie along x and y, counted in pixels of ``step`` from ``origin``; pixel k's centre is k."""
    corner, beginning, lengths, widths = (
        torch.from_numpy(values).to(region.device) for values in (root[:, :2], origin, root[:, 2], step)
    )
    corner, side, width = corner[:, :, None], lengths[:, None, None], widths[:, None, None]
    start, length = region.double()[:, :2, None], region.double()[:, 2:, None]
    share = torch.linspace(0, 1, size, device=region.device, dtype=torch.float64)
    # The root reaches from the centre of its first pixel to that of its last.
    place = corner + 0.5 + (start + length * share - corner) * (1 - 1 / side)
    # Beside the root the edge is repeated.
    least = corner + width / 2
    inside = torch.clamp(place, least, least + side - width)
    counted: Tensor = (inside - beginning[:, :, None]) / width - 0.5
    return counted


def _sample(
    windows: Float[Tensor, "glimpse channels height width"], pixel: Float[Tensor, "glimpse axis size"]
) -> Float[Tensor, "glimpse channels size size"]:
    """Interpolate between the pixels of each window at all pairs of its x and y."""
    height, width = windows.shape[2:]
    x, y = (2 * pixel[:, axis] / max(length - 1, 1) - 1 for axis, length in enumerate((width, height)))
    size = pixel.shape[2]
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3)
    return grid_sample(windows, grid.to(windows), mode="bilinear", padding_mode="border", align_corners=True)
