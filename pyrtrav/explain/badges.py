"""Numbers beside outlines: each touches its own outline, and none hides another where that can be helped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyrtrav.explain.colours import Colour, is_light
from pyrtrav.explain.drawing import Box, Rectangle, Text
from pyrtrav.explain.lettering import INK, PAPER, font

_HIDES, _COVERS, _CROSSES = 1000.0, 100.0, 3.0
"""What it costs that a badge lies over another one; over the whole of a region; over an outline not its own."""


def badge_size(number: int, letters: int) -> tuple[int, int]:
    """Return width and height of the badge of a number in letters of this size, in pixels."""
    height = round(1.3 * letters)
    return max(height, round(font(letters).getlength(f"{number}") + 0.6 * letters)), height


def badge(box: Box, number: int, colour: Colour, letters: int) -> tuple[list[Rectangle], Text]:
    """Return a filled box with a thin edge, and the number in its middle."""
    ink, edge = (INK, (0, 0, 0)) if is_light(colour) else (PAPER, PAPER)
    x, y = (box[0] + box[2] + 1) // 2, (box[1] + box[3] + 1) // 2
    return [Rectangle(box, colour), Rectangle(box, edge, 1)], Text(x, y, f"{number}", letters, ink, "mm")


def place_badges(outlines: Sequence[Box], sizes: Sequence[tuple[int, int]], within: Box) -> list[Box]:
    """Return where the badges of outlines lie, in the order of the outlines.

    Small outlines choose first. A badge prefers the outside, like the tab of a folder, since inside is what was seen.
    """
    placed: dict[int, Box] = {}
    for i in sorted(range(len(outlines)), key=lambda i: _area(outlines[i])):
        others = [other for j, other in enumerate(outlines) if j != i]
        candidates = [place for place in _candidates(outlines[i], sizes[i]) if _shared(place, within) == _area(place)]
        placed[i] = min(
            candidates or [_moved(outlines[i], sizes[i], within)],
            # The first of equally good ones.
            key=lambda place: _cost(place, list(placed.values()), outlines, others),
        )
    return [placed[i] for i in range(len(outlines))]


def _candidates(outline: Box, size: tuple[int, int]) -> Iterator[Box]:
    """Places that touch the outline: outside above, below, left and right, then inside."""
    left, top, right, bottom = outline
    width, height = size
    columns, rows = _along(left, right, width), _along(top, bottom, height)
    for above, below, before, behind in (
        (top - height, bottom + 1, left - width, right + 1),
        (top, bottom - height + 1, left, right - width + 1),
    ):
        for y in (above, below):
            yield from ((x, y, x + width - 1, y + height - 1) for x in columns)
        for x in (before, behind):
            yield from ((x, y, x + width - 1, y + height - 1) for y in rows)


def _along(first: int, last: int, length: int) -> list[int]:
    """Where something of this length can begin along a side: at both of its ends, and between in steps of half."""
    end = last - length + 1
    if end <= first:
        return [first, end]
    return [*range(first, end, max(1, length // 2)), end]


def _moved(outline: Box, size: tuple[int, int], within: Box) -> Box:
    """At the outline's corner, moved so that it is seen: of an outline as large as the picture, or at its edge."""
    x = max(within[0], min(outline[0], within[2] - size[0] + 1))
    y = max(within[1], min(outline[1], within[3] - size[1] + 1))
    return x, y, x + size[0] - 1, y + size[1] - 1


def _cost(place: Box, placed: Sequence[Box], outlines: Sequence[Box], others: Sequence[Box]) -> float:
    hides = sum(_shared(place, other) for other in placed) / _area(place)
    covers = sum(_shared(place, outline) / _area(outline) for outline in outlines)
    crosses = sum(0 < _shared(place, other) < _area(place) for other in others)
    return _HIDES * hides + _COVERS * covers + _CROSSES * crosses


def _area(box: Box) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _shared(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0]) + 1
    height = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(0, width) * max(0, height)
