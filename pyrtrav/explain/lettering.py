"""Words on a picture: title, cost and scales, shortened and spelled so that the font can show them."""

from __future__ import annotations

import math
import unicodedata
from functools import cache
from typing import cast

from PIL import ImageFont

from pyrtrav.geometry import Region
from pyrtrav.tree import Node, ParseTree

Font = ImageFont.FreeTypeFont

INK = (28, 28, 28)
FAINT_INK = (96, 96, 96)
PAPER = (255, 255, 255)

# Letters and marks of European file names that have no decomposition.
_SPELLED = {
    **{"ß": "ss", "Æ": "AE", "æ": "ae", "Ø": "O", "ø": "o", "Œ": "OE", "œ": "oe", "Ł": "L", "ł": "l"},
    **{"\u00b5": "u", "\u03bc": "u", "\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'"},
}

# Names of micrometres in larger and smaller units. Aileron, Pillow's embedded font, has no Greek letter mu.
_UNITS = ((1e9, "km"), (1e6, "m"), (1e3, "mm"), (1.0, "um"), (1e-3, "nm"))


@cache
def font(size: int) -> Font:
    """Return Pillow's own font at ``size`` picture pixels; it needs FreeType, which Pillow's wheels have."""
    return cast(Font, ImageFont.load_default(size=size))


@cache
def _has(character: str) -> bool:
    """Whether the font has a glyph: one that it has not is drawn as the glyph of a non-character."""
    face = font(24)
    mask, missing = face.getmask(character), face.getmask("\uffff")
    return mask.size != missing.size or bytes(mask) != bytes(missing)


def legible(text: str) -> str:
    """Return the text in characters of the font: accents are dropped, other unknown ones become ``?``."""
    letters = []
    for character in text:
        if character.isspace() or not character.isprintable():
            letters.append(" ")
        elif _has(character):
            letters.append(character)
        else:
            plain = _SPELLED.get(character) or unicodedata.normalize("NFKD", character)[0]
            if not unicodedata.combining(character):
                letters.append(plain if plain.isascii() else "?")
    return "".join(letters)


def shortened(text: str, face: Font, width: float) -> str:
    """Return the text, or its beginning and end around ``...``, at most ``width`` picture pixels wide.

    The middle goes: names of one series differ at the end, and the end tells the format.
    """
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        tail = kept // 2
        short = text[: kept - tail].rstrip() + "..." + text[len(text) - tail :].lstrip()
        if face.getlength(short) <= width:
            return short
    return "..."


def title(tree: ParseTree, face: Font, width: float) -> str:
    """Return ``slide.svs: lesion 0.97`` within ``width`` picture pixels; the probability always stays."""
    probability = f" {probability_text(tree.probability)}"
    left = width - face.getlength(probability)
    label = shortened(legible(tree.label), face, left / 2)
    name = shortened(legible(str(tree.record["image"])), face, left - face.getlength(f": {label}"))
    return f"{name}: {label}{probability}"


def probability_text(probability: float) -> str:
    """Return two decimals; what only rounds to certainty is not called certain."""
    text = f"{probability:.2f}"
    if text == "1.00" and probability < 1:
        return ">0.99"
    if text == "0.00" and probability > 0:
        return "<0.01"
    return text


def cost_text(tree: ParseTree) -> str:
    """Return ``37 fixations, 61 of 41,310 tiles, 0.8 MB read``; bytes only where the reader counts them."""
    cost = tree.record["cost"]
    fixations = f"{cost['fixations']:,} fixation{'' if cost['fixations'] == 1 else 's'}"
    if cost["truncated"]:
        fixations += " (cut short)"
    parts = [fixations, f"{cost['tiles_distinct']:,} of {cost['tiles_total']:,} tiles"]
    if cost["bytes_read"] is not None:
        parts.append(f"{bytes_text(cost['bytes_read'])} read")
    return ", ".join(parts)


def bytes_text(count: int) -> str:
    """Return a number of bytes in decimal units, as disks and networks are sold."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        # From 0.1 on: 0.8 MB reads better among MB than 812 kB.
        if count >= 0.1 * size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def downsample_text(nodes: tuple[Node, ...]) -> str:
    """Return ``x16``, or ``x16 .. x4`` where the nodes saw the image at several resolutions."""
    coarsest, finest = (factor_text(choose(node.downsample for node in nodes)) for choose in (max, min))
    return coarsest if coarsest == finest else f"{coarsest} .. {finest}"


def factor_text(downsample: float) -> str:
    """Return ``x446`` or ``x3.49``."""
    return f"x{downsample:,.0f}" if downsample >= 100 else f"x{downsample:.3g}"


def scale_bar(level0_pixels: float, mpp: float) -> tuple[float, str]:
    """Return the longest round bar within ``level0_pixels``: its length in level-0 pixels, and in words."""
    micrometres = level0_pixels * mpp
    power = 10.0 ** math.floor(math.log10(micrometres))
    length = max(factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= micrometres * (1 + 1e-9))
    size, unit = _unit(length)
    return length / mpp, f"{length / size:g} {unit}"


def size_text(region: Region, mpp: float | None) -> str:
    """Return width and height: ``1.31 x 1.31 mm`` where the size of a pixel is known, else ``1,638 x 1,638 px``."""
    if mpp is None:
        return f"{region.width:,.0f} x {region.height:,.0f} px"
    size, unit = _unit(max(region.width, region.height) * mpp)
    return f"{_figure(region.width * mpp / size)} x {_figure(region.height * mpp / size)} {unit}"


def resolution_text(downsample: float, mpp: float | None) -> str:
    """Return ``x51.2``, and what that is: ``x51.2, 12.8 um a pixel`` where the size of a pixel is known."""
    if mpp is None:
        return factor_text(downsample)
    size, unit = _unit(downsample * mpp)
    return f"{factor_text(downsample)}, {_figure(downsample * mpp / size)} {unit} a pixel"


def _figure(value: float) -> str:
    """Three digits, but never an exponent for a rounded thousand."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _unit(micrometres: float) -> tuple[float, str]:
    """The largest unit of which a length is at least one."""
    return next((pair for pair in _UNITS if micrometres >= pair[0] * (1 - 1e-9)), _UNITS[-1])
