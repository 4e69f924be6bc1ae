"""Glimpses of a gigapixel slide against sampling the whole of it in memory: values, gradients, and bytes read.

    python -m benchmarks.gigapixel_glimpses --markdown docs/glimpses.md

Writes a slide as scanners do (`benchmarks.make_slide`; by default 32,768 px a side, 1.07 gigapixels, JPEG), and looks
at it in glimpses of every scale, at random places. The other side is plain: tifffile decodes whole levels, NumPy takes
the means of squares of pixels that a scale asks for, and four lookups a sample, in float64, say what a glimpse is. Only
that other side needs the memory (5 GB).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.make_slide import write_slide
from benchmarks.results import days_of, made_here
from pyrtrav.files import make_folder, written_whole
from pyrtrav.glimpses import GlimpseSampler
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache

SIZE = 64
"""Samples along each side of a glimpse."""
GLIMPSES = 8
"""Of each scale."""

Pixels = NDArray[np.uint8]


class InMemory:
    """Whole levels of a slide, and their means."""

    def __init__(self, path: Path) -> None:
        with tifffile.TiffFile(path) as tif:
            whole = [page.aspage() for page in tif.pages]
            pages = [page.asarray() for page in whole if page.is_tiled]
        side = pages[0].shape[0]
        self.side, self.stored = side, {side // page.shape[0]: page for page in pages}

    def level(self, step: int) -> Pixels:
        """Return the means of squares of ``step`` pixels, from the coarsest stored level that is fine enough."""
        source = max(stored for stored in self.stored if stored <= step)
        page, ratio = self.stored[source], step // source
        if ratio == 1:
            return page
        rows, columns = page.shape[0] // ratio, page.shape[1] // ratio
        out = np.empty((rows, columns, 3), np.uint8)
        for row in range(rows):  # row by row: the sums of a gigapixel would not fit
            block = page[row * ratio : (row + 1) * ratio, : columns * ratio].astype(np.float64)
            out[row] = np.rint(block.reshape(ratio, columns, ratio, 3).mean((0, 2)))
        return out

    def glimpse(self, level: Pixels, step: int, region: Tensor) -> Tensor:
        """Return the samples (glimpse, 3, SIZE, SIZE) in 0..1 of square regions, in float64, with their gradient."""
        share = torch.linspace(0, 1, SIZE, dtype=torch.float64)
        start, length = region[:, :2, None], region[:, 2:, None]
        place = 0.5 + (start + length * share) * (1 - 1 / self.side)
        place = place.clamp(step / 2, self.side - step / 2) / step - 0.5
        first = place.detach().floor().long().clamp(max=len(level) - 2)
        part = place - first
        pixels = torch.from_numpy(level)
        (x, y), (along, down) = first.unbind(1), part.unbind(1)
        along, down = along[:, None, :, None], down[:, :, None, None]

        def at(right: int, below: int) -> Tensor:
            return pixels[(y + below)[:, :, None], (x + right)[:, None, :]].double() / 255

        upper = at(0, 0) * (1 - along) + at(1, 0) * along
        lower = at(0, 1) * (1 - along) + at(1, 1) * along
        samples: Tensor = upper * (1 - down) + lower * down
        return samples.permute(0, 3, 1, 2)


def bytes_read(slide: Pyramid) -> int:
    """Return the bytes read so far, of a slide whose reader counts them."""
    assert slide.cost.bytes_read is not None
    return slide.cost.bytes_read


def look(path: Path, region: Tensor) -> tuple[Tensor, int, int]:
    """Return glimpses, the bytes and the tiles that they read, each by itself with nothing in the cache."""
    found, read, tiles = [], 0, 0
    with open_pyramid(path) as slide:
        sampler = GlimpseSampler([slide], SIZE, torch.device("cpu"))
        for one in torch.split(region, 1):
            shared_cache().clear()
            bytes_before, tiles_before = bytes_read(slide), slide.cost.tiles_decoded
            glimpse, errors = sampler(np.zeros(1, np.int64), one)
            assert not errors
            found.append(glimpse)
            read += bytes_read(slide) - bytes_before
            tiles += slide.cost.tiles_decoded - tiles_before
    return torch.cat(found), read, tiles


def measure(path: Path, seed: int) -> list[tuple[str, ...]]:
    """Return a row of cells for each scale."""
    memory, random = InMemory(path), np.random.default_rng(seed)
    rows: list[tuple[str, ...]] = []
    for halvings in range(int(np.log2(memory.side / SIZE)) + 2):
        width = memory.side / 2**halvings
        corner = random.uniform(0, memory.side - width, (GLIMPSES, 2)) if halvings else np.zeros((1, 2))
        region = torch.from_numpy(np.hstack([corner, np.full((len(corner), 2), width)]))
        step = int(max(width / SIZE, 1))
        expected_region, found_region = (region.clone().requires_grad_() for _ in range(2))
        expected = memory.glimpse(memory.level(step), step, expected_region)
        weights = torch.from_numpy(random.normal(size=expected.shape))
        (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), expected_region)
        found, read, tiles = look(path, found_region)
        (gradient,) = torch.autograd.grad((found * weights).sum(), found_region)
        off = float((found - expected).detach().abs().max()) * 255
        off_gradient = float((gradient - expected_gradient).abs().max() / expected_gradient.abs().max())
        share = read / len(region) / path.stat().st_size
        rows.append(
            (
                f"1/{2**halvings}",
                str(step),
                f"{tiles / len(region):.1f}",
                f"{read / len(region) / 1e3:,.1f}",
                f"{share:.2e}",
                f"{off:.1e}",
                f"{off_gradient:.1e}",
            )
        )
    return rows


HEADER = (
    "glimpse, of the side",
    "sampled level, 1 in",
    "tiles",
    "kB read",
    "of the file",
    "values off by, of 255",
    "gradient off by",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32_768, help="of the slide: a power of two")
    parser.add_argument("--out", type=Path, default=Path("runs/gigapixel_glimpses"), help="where the slide is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the page there too")
    asked = parser.parse_args()
    path = make_folder(asked.out) / f"{asked.side}.svs"
    if not path.exists():
        write_slide(path, asked.side)
    rows = measure(path, asked.seed)
    made = made_here()
    table = [f"| {' | '.join(row)} |" for row in (HEADER, ("---",) * len(HEADER), *rows)]
    text = "\n".join(
        (
            "# Glimpses of a gigapixel slide\n",
            f"`{made['command']}`, seed {asked.seed}, {days_of([made])}: a slide of "
            f"{asked.side:,} x {asked.side:,} pixels ({path.stat().st_size / 1e6:,.0f} MB), {GLIMPSES} glimpses of "
            f"{SIZE} x {SIZE} samples of each scale at random places (of the whole: one), each by itself with nothing "
            "in the cache. Values and gradients are compared with those of whole levels in memory, sampled in "
            "float64; the gradient with respect to the glimpse's place and size, as a share of its largest component. "
            "Tiles and bytes are of a glimpse in the mean.\n",
            *table,
            "",
        )
    )
    print(text)
    if asked.markdown is not None:
        with written_whole(asked.markdown) as beside:
            beside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
