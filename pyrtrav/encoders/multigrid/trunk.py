"""A multigrid network before its classifier, built from its design."""

from collections.abc import Iterator

from torch import Tensor, nn

from pyrtrav.encoders.multigrid.layers import Grids, ImageLayer, MgPool, OnCoarsest, PlainUnit, ResidualUnit
from pyrtrav.encoders.multigrid.zoo import Design


class Trunk(nn.Module):
    """Image layer, sections of units, and multigrid pooling between them and at the end.

    Args:
        design: its numbers.
        channels: of an image.
        side: of an image, in pixels; filters are 1 x 1 on grids of one position.
        norm: a name of `NORMS`.

    Attributes:
        section: the grids of the last section.
        seen: the grid that the classifier sees.
    """

    def __init__(self, design: Design, channels: int, side: int, norm: str) -> None:
        super().__init__()
        unit = ResidualUnit if design.residual else PlainUnit
        self.image = ImageLayer(channels, design.sections[0].widths, design.large, norm)
        self.body = nn.Sequential()
        self.end: nn.Module = nn.Identity()
        grids = self.image.after()
        for number, section in enumerate(design.sections):
            for outputs in _steps(design, number):
                # Fewer grids come out where a progressive section begins, or where another drops the coarsest.
                read = len(outputs) if number == 0 else len(grids)
                kernels = [1 if grid.stride >= side else 3 for grid in grids[-read:]][: len(outputs)]
                inputs = [grid.channels for grid in grids[-read:]]
                layer = OnCoarsest(unit(inputs, outputs, kernels, norm), read)
                self.body.append(layer)
                grids = layer.after(grids)
            self.section = grids
            if section.pool:
                following = design.sections[number + 1 : number + 2]
                pool = MgPool(merge=len(grids) > (len(following[0].widths) if following else 1))
                grids = pool.after(grids)
                if following:
                    self.body.append(pool)
                else:
                    self.end = pool
        self.seen = grids[-1]
        draw(self)

    def forward(self, images: Grids) -> Grids:
        """Return the grids of the last section.

        Args:
            images: a pyramid, as `image_pyramid` makes it, of as many grids as the first section has.
        """
        grids: Grids = self.body(self.image(images))
        return grids

    def classified(self, grids: Grids) -> Tensor:
        """Return what the classifier sees of those grids: the coarsest one, after a last pooling if there is one."""
        coarsest: Tensor = self.end(grids)[-1]
        return coarsest


def _steps(design: Design, number: int) -> Iterator[tuple[int, ...]]:
    """Yield the channels of the grids that each unit of a section gives."""
    section = design.sections[number]
    if number > 0:
        yield from [section.widths] * section.units
    elif design.progressive:
        for grids in range(1, design.grids + 1):
            coarsest = section.widths[-grids:]
            yield from [coarsest[:1] * grids if design.even else coarsest] * section.units
    else:
        # A plain network's image layer is its first unit.
        yield from [section.widths] * (section.units - (not design.residual))


def draw(module: nn.Module) -> None:
    """Draw the weights of convolutions as for ReLU networks, by outputs; biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
