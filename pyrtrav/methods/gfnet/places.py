"""Where focus patches may lie: from places that a policy names to regions of the images."""

import numpy as np

from pyrtrav.geometry import Region
from pyrtrav.methods.gfnet.config import GfnetConfig
from pyrtrav.sampling import Image, Images, StackedImage, root_of
from pyrtrav.selection import Floats, Ints


def focus_side(config: GfnetConfig, image: Image | StackedImage, base_resolution: int) -> float:
    """Return the side of the image's focus patches in level-0 pixels; never more than the glance's."""
    root = root_of(image, base_resolution)
    most = root.width / base_resolution
    finest = config.downsample
    if config.finest_mpp is not None and image.mpp is not None:
        finest = max(finest, config.finest_mpp / image.mpp)
    if config.halvings is not None:
        finest = max(finest, most / 2**config.halvings)
    return base_resolution * min(finest, most)


class Places:
    """The range of each image's patches. All are squares of its side, inside the image wherever that is large enough.

    Corners are whole level-0 pixels: at downsample 1 a patch is what is stored. Where an image is narrower than a
    patch, patches are centred on it.
    """

    def __init__(self, side: Floats, root: Floats, least: Floats, most: Floats) -> None:
        """Take sides (image), and corners (image, 2): of the glance, and the least and greatest of patches."""
        self.side, self.root, self.least, self.most = side, root, least, most

    @classmethod
    def of(cls, config: GfnetConfig, images: Images, base_resolution: int) -> "Places":
        """Return the places of focus patches in images."""
        rows = [_range_of(image, root_of(image, base_resolution), config, base_resolution) for image in images]
        table = np.array(rows).reshape(-1, 8)
        return cls(table[:, 0], table[:, 1:4], table[:, 4:6], table[:, 6:8])

    def at(self, image: Ints, action: Floats) -> Floats:
        """Return regions (place, 4) of a policy's actions (place, 2): 0..1 is a patch's range in the glance."""
        slack = self.root[image, 2] - self.side[image]
        return self._regions(image, self.root[image, :2] + action * slack[:, None])

    def spread(self, image: Ints, share: Floats) -> Floats:
        """Return regions (place, 4) of shares (place, 2), 0..1, of a patch's range in the image."""
        least, most = self.least[image], self.most[image]
        return self._regions(image, least + share * (most - least))

    def _regions(self, image: Ints, corner: Floats) -> Floats:
        inside = np.clip(np.floor(corner), self.least[image], self.most[image])
        side = self.side[image][:, None]
        return np.concatenate([inside, side, side], axis=1)


def _range_of(image: Image | StackedImage, root: Region, config: GfnetConfig, base_resolution: int) -> list[float]:
    """Side of a patch; corner and side of the glance; least and greatest corner of a patch."""
    side, bounds = focus_side(config, image, base_resolution), image.bounds
    least, most = [], []
    for start, end in ((bounds.x, bounds.right), (bounds.y, bounds.bottom)):
        narrow = (start + end - side) / 2
        least.append(start if end - start >= side else narrow)
        most.append(end - side if end - start >= side else narrow)
    return [float(value) for value in (side, root.x, root.y, root.width, *least, *most)]
