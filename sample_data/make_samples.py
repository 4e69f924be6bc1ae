"""Paint the sample data: synthetic tissue whose class shows only where one looks closely.

    python sample_data/make_samples.py [--out DIR] [--train N] [--val N] [--seed S]

Every image is pink tissue on white glass with one *nest*, a purple region of about 170 px that a 64 px
thumbnail shows well. Its nuclei tell the class: solid discs in ``clear``, rings in ``lesion``. A ring has the
mass and the second moment of the disc it stands for, and colours mix linearly, so box means of the two are
alike until a pixel is well inside a nucleus. Nothing else depends on the class.

Lengths are in units of 0.5 um, x right, y down; a training image has a pixel a unit, the larger ones are the same
field of view at a higher magnification (``zoom`` pixels a unit). Angles are radians; colours are RGB in 0..255.
"""

from __future__ import annotations

import argparse
import csv
import math
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from zarr.codecs import ZstdCodec

Colour = tuple[float, float, float]
Floats = NDArray[np.floating]  # float64: last bits that differ between machines round to equal bytes
Bytes = NDArray[np.uint8]  # height, width, RGB

CLASSES = ("clear", "lesion")
MPP = 0.5  # micrometres per unit: a nucleus is 12 um wide
TILE = 256
QUALITY = 70  # of JPEG, as scanners write it

GLASS: Colour = (243, 242, 244)
STROMA: Colour = (228, 172, 200)
NEST: Colour = (196, 142, 190)
NUCLEUS: Colour = (84, 54, 128)
SMOOTH: tuple[Colour, ...] = ((214, 146, 178), (236, 198, 214), (240, 232, 239))  # muscle, oedema, lumen

# How fine the difference is (measured, see README.md): nothing at 16 px per pixel, plain at 8.
RADIUS = (11.0, 12.5)
HOLE = 0.5  # radius of a ring's hole, in radii of the disc
RIM = 4.0  # width of a nucleus's soft edge; a harder one only costs JPEG bytes
OPACITY = 0.43  # of a solid nucleus; a ring has twice as much and scatter, so this stays below 0.45


@dataclass(frozen=True)
class Layout:
    """What an image of a kind holds; pairs are the ends of uniform distributions."""

    width: int
    height: int
    margin: int  # least distance of the nest's centre from the image's border; a nest reaches 131 at most
    section: tuple[float, float]  # radius of the tissue
    smooth: tuple[int, int]  # number of regions without nuclei
    smooth_radius: tuple[float, float]
    strays: tuple[int, int]  # number of nuclei outside the nest, solid or ring by the toss of a coin
    zoom: int = 1  # pixels per unit of length


FIELD = Layout(1024, 1024, 131, (520, 740), (1, 2), (35, 90), (20, 28))
SCENE = replace(FIELD, zoom=2)
SLIDE = replace(FIELD, zoom=8)


@dataclass(frozen=True)
class Blob:
    """A roundish irregular region: its outline's radius swings with the angle."""

    x: float
    y: float
    radius: float
    swings: tuple[tuple[float, float], ...]  # amplitude (share of the radius) and phase of 2, 3, ... waves
    edge: float  # width of the soft outline
    colour: Colour

    def depth(self, xs: Floats | float, ys: Floats | float) -> Floats:
        """How far points lie inside the outline along the ray from the centre; negative outside."""
        dx, dy = xs - self.x, ys - self.y
        angle = np.arctan2(dy, dx)
        outline = 1 + sum(a * np.cos(k * angle + phase) for k, (a, phase) in enumerate(self.swings, 2))
        return np.asarray(self.radius * outline - np.hypot(dx, dy))

    def coverage(self, xs: Floats, ys: Floats) -> Floats:
        return np.asarray(np.clip(self.depth(xs, ys) / self.edge + 0.5, 0, 1))

    @property
    def reach(self) -> float:
        """Nothing further than this from the centre is covered."""
        return self.radius * (1 + sum(a for a, _ in self.swings)) + self.edge


@dataclass(frozen=True)
class Nucleus:
    """An ellipse with the area of a disc of ``radius``: solid, or a ring of equal mass and second moment."""

    x: float
    y: float
    radius: float
    stretch: float  # half the long axis, in radii; the short one is its inverse
    turn: float  # of the long axis
    opacity: float  # of the solid form
    ring: bool
    colour: Colour

    def coverage(self, xs: Floats, ys: Floats) -> Floats:
        dx, dy = xs - self.x, ys - self.y
        along = (dx * math.cos(self.turn) + dy * math.sin(self.turn)) / self.stretch
        across = (dy * math.cos(self.turn) - dx * math.sin(self.turn)) * self.stretch
        distance = np.hypot(along, across)

        def disc(radius: float) -> Floats:
            return np.clip((radius - distance) / RIM + 0.5, 0, 1)

        if not self.ring:
            return self.opacity * disc(self.radius)
        # Mass goes with opacity * (outer^2 - inner^2), second moment with mass * (outer^2 + inner^2), where a
        # disc has no inner radius. Soft edges cancel in a ring; to a disc they add RIM^2 / 12.
        inner, soft = HOLE * self.radius, RIM**2 / 12
        outer = math.sqrt(self.radius**2 - inner**2 - soft)
        opacity = self.opacity * (self.radius**2 + soft) / (outer**2 - inner**2)
        return opacity * (disc(outer) - disc(inner))

    @property
    def reach(self) -> float:
        return self.radius * self.stretch + RIM / 2


@dataclass(frozen=True)
class Scene:
    """All that is needed to paint any window of an image, so that a slide never stands in memory."""

    width: int  # in pixels
    height: int
    zoom: int  # pixels per unit of length, in which all shapes are given
    tissue: Blob
    waves: Floats  # (n, 6): angular frequency in x and y, phase, amplitude in R, G and B
    nest: Blob
    shapes: tuple[Blob | Nucleus, ...]  # painted in this order; the nest is one of them

    def paint(self, left: int, top: int, width: int, height: int) -> Floats:
        """The window's pixels, not yet rounded."""
        zoom = self.zoom
        xs = (np.arange(left, left + width) + 0.5)[None, :] / zoom
        ys = (np.arange(top, top + height) + 0.5)[:, None] / zoom
        pixels = np.full((height, width, 3), GLASS, np.float64)
        tissue = self.tissue.coverage(xs, ys)
        if not tissue.any():
            return pixels
        pixels[:] = self.tissue.colour
        for fx, fy, phase, *amplitude in self.waves:
            pixels += np.sin(fx * xs + fy * ys + phase)[..., None] * amplitude
        for shape in self.shapes:
            columns = window(shape.x * zoom - left, shape.reach * zoom, width)
            rows = window(shape.y * zoom - top, shape.reach * zoom, height)
            mix(pixels[rows, columns], shape.colour, shape.coverage(xs[:, columns], ys[rows]))
        mix(pixels, GLASS, 1 - tissue)
        return pixels


def window(centre: float, reach: float, size: int) -> slice:
    """The part of 0..size that lies within ``reach`` of ``centre``; it may be empty."""
    first, last = np.clip([centre - reach, centre + reach + 1], 0, size).astype(int)
    return slice(first, last)


def mix(pixels: Floats, colour: Colour, coverage: Floats) -> None:
    """Mix ``colour`` in, in place and linearly in intensity: a box mean then sees only a shape's mass."""
    pixels += coverage[..., None] * (np.array(colour) - pixels)


# ---------------------------------------------------------------- drawing lots


def draw_blob(rng: Generator, x: float, y: float, radius: float, edge: float, colour: Colour) -> Blob:
    swings = tuple((rng.uniform(0.02, 0.07), rng.uniform(0, 2 * math.pi)) for _ in range(4))
    return Blob(x, y, radius, swings, edge, colour)


def draw_tissue(rng: Generator, layout: Layout, nest: Blob, colour: Colour) -> Blob:
    """A section around the nest: drawn until it holds it, for the nest's own place must stay uniform."""
    turn = np.linspace(0, 2 * math.pi, 24)
    outline = nest.x + nest.reach * np.cos(turn), nest.y + nest.reach * np.sin(turn)
    while True:
        x, y = (rng.uniform(0.35, 0.65) * side for side in (layout.width, layout.height))
        tissue = draw_blob(rng, x, y, rng.uniform(*layout.section), 6, colour)
        if tissue.depth(*outline).min() > tissue.edge:
            return tissue


def draw_waves(rng: Generator) -> Floats:
    """A slow drift of the ground: three waves of density and three of hue."""
    waves = []
    for tint in (np.array([1.0, 2.0, 1.4]), np.array([0.3, -1.4, 0.4])) * 3:
        frequency, turn = 2 * math.pi / rng.uniform(250, 1000), rng.uniform(0, math.pi)
        direction = frequency * math.cos(turn), frequency * math.sin(turn)
        waves.append([*direction, rng.uniform(0, 2 * math.pi), *(rng.uniform(0.6, 2.0) * tint)])
    return np.array(waves)


def draw_nuclei(
    rng: Generator, count: int, home: Blob, ring: bool | None, colour: Colour, fits: Callable[[Nucleus], bool]
) -> list[Nucleus]:
    """Up to ``count`` nuclei around ``home`` that fit and do not overlap; ``ring=None`` tosses coins."""
    nuclei: list[Nucleus] = []
    for _ in range(100 * count):
        x, y = (centre + rng.uniform(-home.reach, home.reach) for centre in (home.x, home.y))
        radius, stretch, turn = rng.uniform(*RADIUS), rng.uniform(1, 1.1), rng.uniform(0, math.pi)
        opacity, coin = OPACITY * rng.uniform(0.93, 1.07), bool(rng.integers(2))
        new = Nucleus(x, y, radius, stretch, turn, opacity, coin if ring is None else ring, colour)
        if fits(new) and all(apart(new, old) for old in nuclei):
            nuclei.append(new)
        if len(nuclei) == count:
            break
    return nuclei


def apart(a: Blob | Nucleus, b: Blob | Nucleus) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > a.reach + b.reach


def draw_scene(rng: Generator, layout: Layout, label: str) -> Scene:
    """An image of class ``label``; the class changes nothing but the form of the nest's nuclei."""
    stain = rng.normal(0, 3, 3) + rng.normal(0, 4)  # every image is stained a little differently

    def stained(colour: Colour) -> Colour:
        red, green, blue = np.clip(colour + stain, 0, 250).tolist()
        return red, green, blue

    x, y = (rng.uniform(layout.margin, side - layout.margin) for side in (layout.width, layout.height))
    nest = draw_blob(rng, x, y, rng.uniform(84, 94), 10, stained(NEST))
    tissue = draw_tissue(rng, layout, nest, stained(STROMA))
    waves = draw_waves(rng)
    blobs, count = [nest], 1 + rng.integers(*layout.smooth, endpoint=True)
    while len(blobs) < count:
        place = rng.uniform(0, layout.width), rng.uniform(0, layout.height)
        radius, colour = rng.uniform(*layout.smooth_radius), SMOOTH[rng.integers(len(SMOOTH))]
        new = draw_blob(rng, *place, radius, 16, stained(colour))
        if tissue.depth(new.x, new.y) > new.reach and all(apart(new, old) for old in blobs):
            blobs.append(new)

    def in_nest(new: Nucleus) -> bool:
        return bool(nest.depth(new.x, new.y) > 0.4 * new.radius)

    def in_stroma(new: Nucleus) -> bool:
        inside = 0 < new.x < layout.width and 0 < new.y < layout.height
        deep = tissue.depth(new.x, new.y) > new.reach + tissue.edge
        return bool(inside and deep) and all(apart(new, blob) for blob in blobs)

    ink = stained(NUCLEUS)
    crowd = draw_nuclei(rng, 30, nest, label == "lesion", ink, in_nest)
    strays = draw_nuclei(rng, int(rng.integers(*layout.strays, endpoint=True)), tissue, None, ink, in_stroma)
    zoom = layout.zoom
    return Scene(layout.width * zoom, layout.height * zoom, zoom, tissue, waves, nest, (*blobs, *crowd, *strays))


# ---------------------------------------------------------------- writing files


def box_mean(pixels: Floats, side: int = 2) -> Floats:
    height, width, channels = pixels.shape
    return np.asarray(pixels.reshape(height // side, side, width // side, side, channels).mean((1, 3)))


def rounded(pixels: Floats) -> Bytes:
    return np.rint(pixels).astype(np.uint8)


def pyramid(scene: Scene, levels: int) -> list[Bytes]:
    """Levels 1, 2, 4, ...: each the mean of the unrounded one above it, so that rounding does not add up."""
    pixels, out = scene.paint(0, 0, scene.width, scene.height), []
    for _ in range(levels):
        out.append(rounded(pixels))
        pixels = box_mean(pixels)
    return out


def cut(pixels: Bytes) -> Iterator[Bytes]:
    """The level's tiles in row order; those at the right and the bottom may be smaller."""
    for top in range(0, pixels.shape[0], TILE):
        for left in range(0, pixels.shape[1], TILE):
            yield pixels[top : top + TILE, left : left + TILE]


def encode(pixels: Bytes) -> tuple[bytes, bytes]:
    """A tile as TIFF wants it: the quantisation tables, kept once a page, and the JPEG stream without them.

    Huffman tables stay with the tile: made for it (``optimize``), they halve a tile that holds so little.
    """
    tile = np.full((TILE, TILE, 3), pixels.mean((0, 1)), np.uint8)  # padded with a like colour: chroma bleeds
    tile[: pixels.shape[0], : pixels.shape[1]] = pixels
    colours: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "YCBCR", "subsampling": "420"}
    stream = imagecodecs.jpeg8_encode(tile, QUALITY, optimize=True, **colours)
    tables, rest, start = b"", b"", 2
    while (kind := stream[start + 1]) != 0xDA:  # up to the scan
        end = start + 2 + int.from_bytes(stream[start + 2 : start + 4], "big")
        if kind == 0xDB:  # quantisation tables
            tables += stream[start:end]
        elif kind != 0xE0:  # the JFIF header has no place in a TIFF
            rest += stream[start:end]
        start = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[start:]


def jpeg_page(tiles: Iterator[Bytes], width: int, height: int) -> dict[str, Any]:
    """What tifffile needs for a YCbCr 4:2:0 level; ``metadata=None`` keeps it from adding a description."""
    tables, _ = encode(np.zeros((TILE, TILE, 3), np.uint8))
    data = {"data": (encode(tile)[1] for tile in tiles), "shape": (height, width, 3), "dtype": np.uint8}
    coding = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg", "jpegtables": tables}
    return {"tile": (TILE, TILE), "software": False, "metadata": None, **data, **coding}


def write_tiff(path: Path, scene: Scene, ome: bool = False) -> None:
    """Levels 1, 2, 4, 8, 16 as reduced pages, or as the SubIFDs that OME-TIFF wants."""
    levels = pyramid(scene, 5)
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        for k, pixels in enumerate(levels):
            page = jpeg_page(cut(pixels), pixels.shape[1], pixels.shape[0])
            if ome and k == 0:
                size: dict[str, Any] = {"PhysicalSizeX": MPP / scene.zoom, "PhysicalSizeY": MPP / scene.zoom}
                size |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
                fixed = uuid.uuid5(uuid.NAMESPACE_URL, path.name)  # tifffile's own is new at every run
                page["metadata"] = {"axes": "YXS", "UUID": str(fixed), "Creator": "make_samples.py", **size}
                page["subifds"] = len(levels) - 1
            per_centimetre = 1e4 * scene.zoom / (MPP * 2**k)
            page |= {"resolution": (per_centimetre, per_centimetre), "resolutionunit": "CENTIMETER"}
            tiff.write(**page, subfiletype=int(k > 0))


def write_slide(path: Path, scene: Scene) -> None:
    """Aperio's layout, levels 1, 4, 16, painted tile by tile.

    Readers are particular: the thumbnail must be the second page, and no level may be marked as reduced.
    """
    width, height = scene.width, scene.height
    quarter = np.empty((height // 4, width // 4, 3))

    def finest() -> Iterator[Bytes]:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                pixels = scene.paint(left, top, TILE, TILE)
                quarter[top // 4 : (top + TILE) // 4, left // 4 : (left + TILE) // 4] = box_mean(pixels, 4)
                yield rounded(pixels)

    def level(tiles: Iterator[Bytes], width: int, height: int, text: str) -> None:
        text = f"{head}{size} [0,0 {size}] ({TILE}x{TILE}) {text}"
        tiff.write(**jpeg_page(tiles, width, height), description=text, subfiletype=0)

    def associated(image: Image.Image, text: str, kind: int) -> None:
        page: dict[str, Any] = {"photometric": "rgb", "rowsperstrip": 64, "compression": "deflate"}
        page |= {"description": head + text, "metadata": None, "software": False}
        tiff.write(np.asarray(image), subfiletype=kind, **page)

    head, size = "Aperio Image Library v11.2.1\r\n", f"{width}x{height}"
    with tifffile.TiffWriter(path) as tiff:
        level(finest(), width, height, f"JPEG/YCC Q={QUALITY}|MPP = {MPP / scene.zoom}|Filename = synthetic")
        coarse = [rounded(quarter), rounded(box_mean(quarter, 4))]  # complete now that the finest is written
        thumbnail = Image.fromarray(coarse[-1])
        associated(thumbnail, f"{size} -> {thumbnail.width}x{thumbnail.height}", 0)
        for pixels in coarse:
            rows, columns, _ = pixels.shape
            level(cut(pixels), columns, rows, f"-> {columns}x{rows} JPEG/YCC Q={QUALITY}")
        label = Image.new("RGB", (160, 160), "white")
        text = "pyrtrav\nsynthetic sample\nno clinical meaning"
        ImageDraw.Draw(label).multiline_text((20, 50), text, "black")
        macro = Image.new("RGB", (480, 160), "gainsboro")
        macro.paste(label, (0, 0))
        macro.paste(thumbnail.resize((200, 150)), (240, 5))
        associated(label, "label 160x160", 1)
        associated(macro, "macro 480x160", 9)


def write_zarr(path: Path, scene: Scene) -> None:
    """OME-Zarr 0.5, axes c, y, x: one shard a level."""
    levels = pyramid(scene, 3)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for k, pixels in enumerate(levels):
        planes = pixels.transpose(2, 0, 1)
        array = group.create_array(
            str(k),
            shape=planes.shape,
            chunks=(3, TILE, TILE),
            shards=planes.shape,
            dtype="uint8",
            compressors=ZstdCodec(level=19),
            fill_value=255,
            dimension_names=("c", "y", "x"),
        )
        array[:] = planes
        scale = {"type": "scale", "scale": [1.0, MPP * 2**k, MPP * 2**k]}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
    axes: list[Any] = [{"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    multiscale: Any = {"name": path.name, "axes": axes, "datasets": datasets}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the sample data; equal commands write equal bytes.")
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here, metavar="DIR", help="default: the script's folder")
    parser.add_argument("--train", type=int, default=60, metavar="N", help="training images per class (60)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="validation images per class (40)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all images (0)")
    options = parser.parse_args()
    nests: list[tuple[str | float, ...]] = [("path", "label", "x", "y", "width", "height")]

    def draw(name: str, layout: Layout, label: str, *key: int) -> tuple[Path, Scene]:
        """The path to write and what to paint there: lots of its own for every key."""
        path = options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(np.random.default_rng([options.seed, *key]), layout, label)
        nest, zoom = scene.nest, scene.zoom
        side = round(2 * nest.reach * zoom, 1)
        corner = (round(centre * zoom - side / 2, 1) for centre in (nest.x, nest.y))
        nests.append((name, label, *corner, side, side))
        return path, scene

    for split, (folder, count) in enumerate((("train", options.train), ("val", options.val))):
        for index, label in enumerate(CLASSES):
            for number in range(count):
                name = f"tissue/{folder}/{label}/{number:03}.tif"
                write_tiff(*draw(name, FIELD, label, split, index, number))
    write_slide(*draw("slide.svs", SLIDE, "lesion", 2, 0))
    write_tiff(*draw("scene.ome.tif", SCENE, "clear", 2, 1), ome=True)
    write_zarr(*draw("scene.ome.zarr", FIELD, "clear", 2, 2))
    path, scene = draw("scene.png", FIELD, "lesion", 2, 3)
    Image.fromarray(pyramid(scene, 1)[0]).save(path, optimize=True)
    with (options.out / "nests.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(nests)


if __name__ == "__main__":
    main()
