"""The networks for classification of "Multigrid Neural Architectures", in numbers.

Tables 1 and 4, figure 3. VGG and RES have one grid; MG, R-MG three; PMG, R-PMG begin on the coarsest alone. What the
paper does not print (channels of the -sm forms, of ImageNet's designs, where grids merge) is the authors' code's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pyrtrav.errors import ConfigError, nearest_name

FEWEST = 8
"""Channels that a narrowed grid keeps, where it had them: normalising over fewer would leave little."""


@dataclass(frozen=True)
class Section:
    """Units on grids of the same sizes."""

    widths: tuple[int, ...]
    """Channels of each grid, finest first."""
    units: int
    """Units one after another; of a progressive section, on each number of grids."""
    pool: bool = True
    """Whether every grid is halved afterwards."""


@dataclass(frozen=True)
class Design:
    """A network before its classifier."""

    sections: tuple[Section, ...]
    residual: bool = False
    """Units of two convolutions and a shortcut."""
    progressive: bool = False
    """The first section has units on the coarsest grid alone, then on two, and so on."""
    even: bool = False
    """In a progressive section the grids have the channels of the finest that takes part."""
    large: bool = False
    """The image layer is ResNet's, which reduces images by four; else a 3 x 3 convolution at full size."""

    @property
    def grids(self) -> int:
        """Grids of the first section."""
        return len(self.sections[0].widths)

    def narrowed(self, width: float) -> "Design":
        """Return the same network with this share of the channels."""

        def fewer(channels: int) -> int:
            return max(min(channels, FEWEST), round(channels * width))

        sections = (replace(s, widths=tuple(map(fewer, s.widths))) for s in self.sections)
        return replace(self, sections=tuple(sections))


def _cifar(finest: int, grids: int, units: int, **kind: bool) -> Design:
    """Five sections with pooling between: 1, 2, 4, 8 and 8 times the channels; of three grids the last two merge."""
    wide = [tuple(finest * times >> g for g in range(grids)) for times in (1, 2, 4, 8)]
    last = (finest * 8,) if grids == 1 else (finest * 8, sum(wide[-1][1:]))
    return Design(tuple(Section(widths, units) for widths in (*wide, last)), **kind)


def _by_depth(name: str, depths: tuple[int, ...], build: Callable[[int], Design]) -> dict[str, Design]:
    return {f"{name}-{depth}": build(units) for units, depth in enumerate(depths, 1)}


_PLAIN, _RESIDUAL, _PROGRESSIVE, _BOTH = (6, 11, 16, 21), (12, 22, 32, 42), (9, 16, 30), (16, 30, 44)

DESIGNS: dict[str, Design] = {
    # Table 1. The paper's PMG-30 and PMG-sm-30 have 23 layers as the others are counted.
    **_by_depth("VGG", _PLAIN, lambda units: _cifar(64, 1, units)),
    **_by_depth("MG-sm", _PLAIN, lambda units: _cifar(40, 3, units)),
    **_by_depth("MG", _PLAIN, lambda units: _cifar(64, 3, units)),
    **_by_depth("PMG-sm", _PROGRESSIVE, lambda units: _cifar(40, 3, units, progressive=True)),
    **_by_depth("PMG", _PROGRESSIVE, lambda units: _cifar(64, 3, units, progressive=True)),
    **_by_depth("RES", _RESIDUAL, lambda units: _cifar(64, 1, units, residual=True)),
    **_by_depth("R-MG-sm", _RESIDUAL, lambda units: _cifar(40, 3, units, residual=True)),
    **_by_depth("R-MG", _RESIDUAL, lambda units: _cifar(64, 3, units, residual=True)),
    **_by_depth("R-PMG-sm", _BOTH, lambda units: _cifar(40, 3, units, residual=True, progressive=True)),
    **_by_depth("R-PMG", _BOTH, lambda units: _cifar(64, 3, units, residual=True, progressive=True)),
    # Table 4.
    "R-MG-34": Design(
        (
            Section((64, 32, 16), 3),
            Section((128, 64, 32), 4),
            Section((256, 128), 6),
            Section((512,), 3, pool=False),
        ),
        residual=True,
        large=True,
    ),
    "R-PMG-30-SEG": Design(
        (
            Section((64, 32, 16, 8), 2, pool=False),
            Section((64, 64, 64, 128), 2, pool=False),
            Section((64, 64, 128, 256), 2, pool=False),
            Section((64, 128, 256, 512), 2, pool=False),
        ),
        residual=True,
        progressive=True,
        even=True,
        large=True,
    ),
}
"""Networks by the paper's names."""


def find_design(name: str) -> Design:
    """Return a network by its name; ConfigError with the nearest one where there is none."""
    if name not in DESIGNS:
        raise ConfigError(f"unknown multigrid network {name!r}{nearest_name(name, DESIGNS)}")
    return DESIGNS[name]
