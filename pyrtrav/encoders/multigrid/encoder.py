"""Multigrid neural architectures: networks whose layers take and give a pyramid of grids.

Source: "Multigrid Neural Architectures" (Ke, Maire, Yu, 2017), sections 3, 4.1 and 4.4, tables 1 and 4.

    grid, pyramid                        a feature map; a list of them, finest first (`Grids`)
    mg-conv                              `MgConv`: `gather`, then a convolution for each grid
    res-mg-unit                          `ResidualUnit`
    progressive (PMG)                    ``Design.progressive``, `OnCoarsest`
    pooling of a whole pyramid           `MgPool`
    VGG, RES, MG, R-MG, PMG, R-PMG, -sm  `DESIGNS`
    what the softmax layer sees          ``Encoding.vector``
    the finest grid                      ``Encoding.map``

The vector is what the paper's classifier sees: the coarsest grid after the last pooling, averaged where it has more
than one position (of 32 px images it has one). The map is the finest grid of the last section, before that pooling:
of all grids that know the whole network's features it says best where something is, at twice the rows and columns of
what the vector is made of.

With **context** (`encode_within`, from `topdown` with ``context="parent"``) the grids after the finest show twice the
patch's side around it, at the same scale and with the same weights: they begin as the context at half, quarter ... the
patch's scale, exchange their middles with the finest grid, and end as their middles. So a vector and a map are still of
the patch alone, seen in its surroundings.

Differs from the paper:
1. What it does not print is as in the authors' code: the merging of grids, 1 x 1 filters on grids of one position,
   the channels of the -sm forms and of ImageNet's designs, zeros for a shortcut's new channels.
2. Features are normalised over the channels of each position; ``norm="batch"`` is the paper's (see `normalisation`).
3. Images of any size: grids of odd sizes are rounded up, and cut where they are doubled.
4. ``width`` makes a network narrower, down to 8 channels a grid.
5. In R-PMG-30-SEG the last units' finer grids have no way to the classifier. They are built and counted, as in the
   paper's table; in `topdown`, which stops gradients at the map, they keep their first weights.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from pyrtrav.encoders.base import Encoder, Encoding, Window
from pyrtrav.encoders.multigrid.layers import Grids, image_pyramid
from pyrtrav.encoders.multigrid.trunk import Trunk
from pyrtrav.encoders.multigrid.zoo import find_design
from pyrtrav.encoders.normalisation import LOCAL
from pyrtrav.encoders.resize import centred
from pyrtrav.errors import ConfigError


class MultigridEncoder(Encoder):
    """A multigrid network, or one of the paper's baselines VGG and RES, without its classifier.

    Args:
        channels: 1 or 3.
        base_resolution: a multiple of 32, the stride of every network.
        network: a name of `DESIGNS`.
        width: share of the network's channels; a grid keeps at least 8.
        norm: "channel", over the channels of each position; "patch", over a patch; or "batch", the paper's. The last
            two do not go with `fcn`.
        mean, std: of patches in 0..1, one number or one for each channel.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        base_resolution: int = 64,
        network: str = "MG-6",
        width: float = 0.125,
        norm: str = "channel",
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.25,
    ) -> None:
        design = find_design(network)
        if not 0 < width <= 1:
            raise ConfigError(f"width must be above 0 and at most 1, got {width}")
        trunk = Trunk(design.narrowed(width), channels, base_resolution, norm)
        finest, seen = trunk.section[0], trunk.seen
        if base_resolution < seen.stride or base_resolution % seen.stride:
            raise ConfigError(
                f"base resolution {base_resolution} is no multiple of {seen.stride}, the stride of {network}"
            )
        side = base_resolution // finest.stride
        field = seen.stride + 2 * seen.margin
        super().__init__(
            channels=channels,
            base_resolution=base_resolution,
            vector_size=seen.channels,
            map_size=(side, side),
            map_channels=finest.channels,
            mean=mean,
            std=std,
            # Layers that look to and fro between grids are no stack: one window holds all that a feature sees.
            windows=(Window(field, seen.stride), Window(1, 1, pooling=True)) if norm == LOCAL else (),
        )
        self.trunk, self._grids = trunk, design.grids
        self.takes_context = design.grids > 1

    def encode(self, patches: Float[Tensor, "fixation channels size size"]) -> Encoding:
        """Encode normalised patches: the vector from the grid that the classifier sees, the map the finest grid."""
        grids: Grids = self.trunk(image_pyramid(patches, self._grids))
        return Encoding(self.trunk.classified(grids).mean((2, 3)), grids[0])

    def encode_within(
        self,
        patches: Float[Tensor, "fixation channels size size"],
        around: Float[Tensor, "fixation channels size size"],
    ) -> Encoding:
        """Encode normalised patches with what surrounds them in the coarser grids."""
        grids: Grids = self.trunk([patches, *image_pyramid(around, self._grids - 1)])
        side = self.base_resolution // self.trunk.seen.stride
        return Encoding(centred(self.trunk.classified(grids), side, side).mean((2, 3)), grids[0])

    def features(
        self, images: Float[Tensor, "image channels height width"]
    ) -> Float[Tensor, "image vector_size rows columns"]:
        """Return the grid that the classifier sees, of normalised images of any size: its mean is the vector."""
        return self.trunk.classified(self.trunk(image_pyramid(images, self._grids)))
