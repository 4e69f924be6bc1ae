"""An explanation as one HTML file that needs no server and no network, by Bokeh (the extra ``html``).

The foveated picture, embedded as a JPEG, lies under the regions; beside it stands the tree. Both draw from one table
of nodes, so that a look that is picked in one is marked in the other. Names come from files and folders and are
hostile: they stand in the template alone, which escapes them; Bokeh is given numbers only. The page forbids itself
the network (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pyrtrav.errors import ConfigError
from pyrtrav.explain.chain import is_chain, number_of, probability_after
from pyrtrav.explain.chances import chances
from pyrtrav.explain.colours import Colour, Scale, hexadecimal, is_light
from pyrtrav.explain.foveated import paint_seen
from pyrtrav.explain.frame import check_drawable, frame_of
from pyrtrav.explain.glimpses import colour_of
from pyrtrav.explain.icicle import icicle
from pyrtrav.explain.lettering import bytes_text, factor_text, probability_text
from pyrtrav.explain.outline import colour_for, figure_of
from pyrtrav.explain.overlay import scale_for
from pyrtrav.explain.plots import chain_plot, length_unit, number_glimpses, picked_look, picture_plot, tree_plot
from pyrtrav.explain.templates import rendered
from pyrtrav.files import written_whole
from pyrtrav.geometry import covers
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import Node, ParseTree

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource

GRAY = "#787878"
"""Of a region that covers the image, or of which the figure that is shown is unknown."""

FIGURES = {
    "look": "look",
    "depth": "depth",
    "score": "score",
    "contribution": "contribution",
    "probability": "probability of this look",
    "downsample": "downsample",
    "region": "region",
}
"""What the page says of a node, in this order: columns and their names."""

CHAIN_FIGURES = {
    "look": "glimpse",
    "after": "probability after",
    **{name: FIGURES[name] for name in ("contribution", "downsample", "region")},
}
"""What it says of a glimpse of a chain: its score is 1, and its depth its place."""

MOST_CLASSES = 6
"""Of more classes, the table by depth names only the one predicted."""

_QUALITY = 90


def draw_page(tree: ParseTree, pyramid: Pyramid, *, width: int = 2000, colour: str | None = None) -> str:
    """Return the page.

    Args:
        tree: what was looked at.
        pyramid: the image that the tree is of; what was looked at is read again, and nothing else.
        width: long side of the picture in pixels; the page grows with its square.
        colour: the figure that is shown as colour, ``score`` or ``contribution``; by default what tells more.

    Raises:
        ConfigError: the extra is missing, the tree is of another image or has no such figure.
        CorruptImageError: a tile cannot be decoded; names file, level, column and row.
    """
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise ConfigError("an HTML page needs the extra `html`: pip install 'pyrtrav[html]'") from error
    check_drawable(tree, pyramid, width)
    shown = colour_for(tree, colour)
    scale = scale_for(tree, shown)
    canvas, everything = paint_seen(tree, pyramid, frame_of(tree.bounds, width, 1))
    # The core alone: it draws, and has no widgets and no formulas, which would come from the network.
    library = Resources(mode="inline", components=["bokeh"])
    return rendered(
        "page.html",
        image=tree.record["image"],
        label=tree.label,
        probability=probability_text(tree.probability),
        classes=_classes(tree),
        depths=_depths(tree),
        cost=_cost(tree),
        run=_run(tree),
        figures=list((CHAIN_FIGURES if is_chain(tree) else FIGURES).items()),
        chained=is_chain(tree),
        everything=everything,
        library=library.render(),
        # Inside a script element nothing is escaped but the end of it.
        plots=_plots(tree, canvas, scale, shown).replace("<", "\\u003c"),
    )


def save_page(
    tree: ParseTree, pyramid: Pyramid, path: str | os.PathLike[str], *, width: int = 2000, colour: str | None = None
) -> None:
    """Write ``draw_page``, whole or not at all.

    Raises:
        ConfigError: the name does not end in ``.html``, or its folder cannot be written to.
    """
    check_page(path)
    text = draw_page(tree, pyramid, width=width, colour=colour)
    with written_whole(path) as beside:
        beside.write_bytes(text.encode("utf-8", "replace"))


def check_page(path: str | os.PathLike[str]) -> None:
    """Raise ConfigError where the name does not end in ``.html``."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{os.fspath(path)}: a page is HTML; give a name that ends in .html")


# Words.


def _classes(tree: ParseTree) -> list[tuple[str, str, float]]:
    """Name, probability in words and in percent of every class, the likeliest first."""
    found = sorted(tree.record["prediction"]["probabilities"].items(), key=lambda item: -item[1])
    return [(name, probability_text(value), round(100 * value, 2)) for name, value in found]


def _depths(tree: ParseTree) -> dict[str, list[Any]]:
    """The prediction after each depth, or glimpse: what stands over the columns, and the rows."""
    first, step = (1, "glimpse") if is_chain(tree) else (0, "depth")
    names = list(tree.record["prediction"]["probabilities"])
    shown = names if len(names) <= MOST_CLASSES else []
    rows = [
        [level["depth"] + first, level["label"], probability_text(level["probabilities"][level["label"]])]
        + [probability_text(level["probabilities"][name]) for name in shown]
        for level in tree.record["levels"]
    ]
    return {"heads": [step, "prediction", "probability", *shown], "rows": rows}


def _cost(tree: ParseTree) -> list[tuple[str, str]]:
    cost = tree.record["cost"]
    ended = " (cut short)" if cost["truncated"] else " (left early)" if cost.get("left_early") else ""
    looks = f"{cost['fixations']:,}{ended}"
    total = cost["seconds"].get("total")
    pairs = [
        ("looks", looks),
        ("tiles", f"{cost['tiles_distinct']:,} of {cost['tiles_total']:,}"),
        ("read", None if cost["bytes_read"] is None else bytes_text(cost["bytes_read"])),
        ("pixels decoded", f"{cost['pixels_decoded']:,}"),
        ("pixels seen by the model", f"{cost['pixels_encoded']:,}"),
        ("multiply-accumulates", f"{cost['macs']:,}"),
        ("seconds", None if total is None else f"{total:.2f}"),
    ]
    return [(name, text) for name, text in pairs if text is not None]


def _run(tree: ParseTree) -> list[tuple[str, str]]:
    model, settings = tree.record["model"], tree.record["settings"]
    return [
        ("size", f"{tree.width:,} × {tree.height:,} px" + (f", {tree.mpp:.4g} µm a pixel" if tree.mpp else "")),
        ("method", f"{model['method']}, encoder {model['encoder']}"),
        ("model", model["sha256"][:16]),
        ("selection", f"{settings['select']}, to depth {settings['depth']}"),
        ("pyrtrav", str(tree.record["version"])),
    ]


# Plots.


def _plots(tree: ParseTree, canvas: Image.Image, scale: Scale | None, colour: str) -> str:
    """Picture and tree as Bokeh's JSON, the same for the same tree."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item
    from bokeh.layouts import row

    source = _table(tree, scale, colour)
    mark = picked_look(source)
    picture = picture_plot(tree, _data_uri(canvas), source, mark, scale)
    if is_chain(tree):
        number_glimpses(picture, source)
    beside = chain_plot(source, mark) if is_chain(tree) else tree_plot(source, mark)
    return _renumbered(json.dumps(json_item(row(picture, beside, sizing_mode="stretch_both"), ID("plots"))))


def _table(tree: ParseTree, scale: Scale | None, shown_as_colour: str) -> ColumnDataSource:
    """A row a node, the smallest region first: of regions that lie over each other, a click means that one."""
    from bokeh.models import ColumnDataSource

    boxes, figure, words = icicle(tree), figure_of(shown_as_colour), _figures(tree)
    chained = is_chain(tree)
    nodes = sorted(tree.nodes, key=lambda node: (node.region.area, -node.score, node.id))
    columns: dict[str, list[Any]] = {}
    unit = length_unit(tree)
    for node in nodes:
        shown, box = node.region.intersection(tree.bounds), boxes[node.id]
        colour, strength = _look(None if covers(node.region, tree.bounds) else figure(node), scale)
        row = {
            **{"left": shown.x * unit, "right": shown.right * unit},
            **{"top": shown.y * unit, "bottom": shown.bottom * unit},
            **{"level": box.level, "next": box.level + 0.97, "first": box.top, "last": box.bottom},
            **{"colour": colour, "strength": strength, "thickness": 1 + 3 / (1 + node.depth)},
            **words(node),
            **(_link(tree, node, colour_of(node, tree, scale, figure)) if chained else {}),
        }
        for name, entry in row.items():
            columns.setdefault(name, []).append(entry)
    return ColumnDataSource(columns)


def _link(tree: ParseTree, node: Node, colour: Colour) -> dict[str, Any]:
    """A glimpse's own way of being drawn: a bar, and a number that the numbers before it do not hide."""
    probability = probability_after(tree, node)
    near = max(tree.bounds.width, tree.bounds.height) / 30
    at_top = node.region.y - tree.bounds.y < near
    same = [
        other
        for other in tree.nodes[: node.id]
        if abs(other.region.x - node.region.x) < near and abs(other.region.y - node.region.y) < near
    ]
    return {
        **{"colour": hexadecimal(colour), "ink": "#000000" if is_light(colour) else "#ffffff"},
        **{"strength": 1.0, "thickness": 3.0, "shift": 22 * len(same), "drop": 22 * at_top, "middle": node.id + 0.485},
        # Never so low that it cannot be picked.
        **{"first": 1.0 if probability is None else max(probability, 0.02), "last": 0.0},
    }


def _look(value: float | None, scale: Scale | None) -> tuple[str, float]:
    """Colour and opacity of a node's outline."""
    if value is None or scale is None:
        return GRAY, 0.8
    position = scale.position(value)
    # What matters little steps back, but never so far that its colour cannot be read.
    return hexadecimal(scale.colour(position)), 0.4 + 0.6 * scale.weight(position)


def _figures(tree: ParseTree) -> Callable[[Node], dict[str, str]]:
    """The figures of a look in words."""
    probability = chances(tree)
    if is_chain(tree):
        return lambda node: {
            "look": f"{number_of(node)}",
            "after": _number(probability_after(tree, node), ".3f"),
            **_measures(node),
        }
    return lambda node: {
        "look": f"{node.id}",
        "depth": f"{node.depth}",
        "score": f"{node.score:.3g}",
        "probability": _number(probability.get(node.id), ".3f"),
        **_measures(node),
    }


def _measures(node: Node) -> dict[str, str]:
    region = node.region
    return {
        "contribution": _number(node.contribution, "+.3g"),
        "downsample": factor_text(node.downsample),
        "region": f"{region.x:.0f}, {region.y:.0f}, {region.width:.0f} × {region.height:.0f} px",
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _renumbered(item: str) -> str:
    """The item with its models counted from 1: Bokeh counts all that a process made."""
    numbers: dict[str, str] = {}
    return re.sub(r'"(p\d{4,})"', lambda found: f'"{numbers.setdefault(found[1], f"m{len(numbers) + 1}")}"', item)
