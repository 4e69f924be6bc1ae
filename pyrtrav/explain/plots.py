"""The two plots of a page, picture and tree, by Bokeh. Both draw from one table of nodes (see ``page``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrtrav.explain.chain import is_chain
from pyrtrav.explain.colours import Scale, hexadecimal
from pyrtrav.tree import ParseTree

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.models.renderers import GlyphRenderer
    from bokeh.plotting import figure as Figure  # noqa: N812 - a class with a function's name

PICKED, TOUCHED = "#e60000", "#000000"
"""Outlines of the look that is picked, and of those under the pointer."""

_EDGES = ("left", "right", "top", "bottom")
_BOX: dict[str, Any] = {"left": "level", "right": "next", "top": "first", "bottom": "last"}
"""The columns of a look's place in the picture, and in the tree."""

_SHADES = 128

_TOOLTIP = """<div class="look"><b>look @look, depth @depth</b><br>score @score<br>contribution @contribution<br>
probability of this look @probability<br>downsample @downsample<br>@region</div>"""

_CHAIN_TOOLTIP = """<div class="look"><b>glimpse @look</b><br>probability after @after<br>contribution @contribution<br>
downsample @downsample<br>@region</div>"""

_PICK = """
const [first, ...others] = [...table.selected.indices].sort((a, b) => a - b);
if (others.length) {
  table.selected.indices = [first];
} else {
  const none = first === undefined;
  mark.data = Object.fromEntries(Object.keys(mark.data).map((name) => [name, none ? [] : [table.data[name][first]]]));
  window.showLook(none ? null : table.data, first);
}
"""


def picked_look(table: ColumnDataSource) -> ColumnDataSource:
    """Return a table of the look that is picked, none at first; a click in either plot changes it."""
    from bokeh.models import ColumnDataSource, CustomJS

    mark = ColumnDataSource({name: [] for name in (*_EDGES, *_BOX.values())})
    table.selected.js_on_change("indices", CustomJS(args={"table": table, "mark": mark}, code=_PICK))
    return mark


def picture_plot(
    tree: ParseTree, picture: str, table: ColumnDataSource, mark: ColumnDataSource, scale: Scale | None
) -> Figure:
    """Return the picture, a data URI, under the regions; y down.

    Lengths are micrometres with a scale bar where the size of a pixel is known, else level-0 pixels with axes.
    """
    plot = _ground(tree)
    x, y, width, height = (length * length_unit(tree) for length in tree.bounds.as_tuple())
    plot.image_url(url=[picture], x=x, y=y, w=width, h=height, anchor="top_left")
    # What is shown at first. Of an image, Bokeh takes that to lie on the other side of its corner where y runs down.
    frame = plot.quad(left=[x], right=[x + width], top=[y], bottom=[y + height], fill_alpha=0, line_alpha=0)
    for extent in (plot.x_range, plot.y_range):
        extent.update(renderers=[frame])
    edges: dict[str, Any] = {name: name for name in _EDGES} | {"fill_color": None}
    drawn = _outlines(table)
    # Casings part the lines from the tissue.
    plot.quad(**edges, source=drawn, line_color="white", line_width="casing", line_alpha="faint", name="casings")
    plot.quad(**edges, source=drawn, line_color="colour", line_width="thickness", line_alpha="strength", name="regions")
    words = _CHAIN_TOOLTIP if is_chain(tree) else _TOOLTIP
    _touchable(plot, plot.quad(**edges | {"fill_color": "white"}, source=table, fill_alpha=0, line_alpha=0), words)
    plot.quad(**edges, source=mark, line_color=PICKED, line_width=4)
    if scale is not None:
        plot.add_layout(_colour_bar(scale), "below")
    return plot


def _ground(tree: ParseTree) -> Figure:
    """An empty plot as wide as high, with a scale bar or axes."""
    from bokeh.models import BasicTickFormatter, BoxZoomTool, DataRange1d
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_both",
        match_aspect=True,
        x_range=DataRange1d(range_padding=0.02),
        y_range=DataRange1d(range_padding=0.02, flipped=True),
        tools="pan,wheel_zoom,reset,save",
        active_scroll="wheel_zoom",
        output_backend="canvas",
        background_fill_color="#e2e2e2",
        min_border=8,
        name="picture",
    )
    plot.add_tools(BoxZoomTool(match_aspect=True))
    plot.grid.visible = False
    if tree.mpp:
        plot.axis.visible = False
        plot.add_layout(_scale_bar(plot))
    else:
        plot.axis.axis_label_text_font_style = "normal"
        plot.xaxis.axis_label = "level-0 pixels"
        plot.axis.formatter = BasicTickFormatter(use_scientific=False)
    return plot


def length_unit(tree: ParseTree) -> float:
    """Return what a level-0 pixel measures on the picture plot's axes."""
    return tree.mpp or 1.0


def tree_plot(table: ColumnDataSource, mark: ColumnDataSource) -> Figure:
    """Return the tree as an icicle, the glance at the left."""
    from bokeh.models import DataRange1d, SingleIntervalTicker
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_both",
        x_range=DataRange1d(range_padding=0.01),
        y_range=DataRange1d(range_padding=0.005, flipped=True),
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        output_backend="canvas",
        min_border=8,
        name="tree",
    )
    plot.grid.visible = False
    plot.yaxis.visible = False
    plot.outline_line_color = None
    plot.xaxis.axis_label = "steps from the glance; best first"
    plot.xaxis.axis_label_text_font_style = "normal"
    plot.xaxis.ticker = SingleIntervalTicker(interval=1, num_minor_ticks=0)
    crowded = max(table.data["last"]) > 150
    boxes = plot.quad(
        **_BOX,
        source=table,
        fill_color="colour",
        line_color="white",
        line_width=0.25 if crowded else 1,
    )
    _touchable(plot, boxes, _TOOLTIP)
    plot.quad(**_BOX, source=mark, fill_color=None, line_color=PICKED, line_width=4)
    return plot


def chain_plot(table: ColumnDataSource, mark: ColumnDataSource) -> Figure:
    """Return a chain as a row of bars: how probable the class that is predicted in the end was after each glimpse."""
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    plot = figure(
        sizing_mode="stretch_both",
        y_range=Range1d(start=0, end=1.08),
        tools="pan,wheel_zoom,box_zoom,reset",
        output_backend="canvas",
        min_border=8,
        name="tree",
    )
    plot.grid.visible = False
    plot.outline_line_color = None
    plot.xaxis.visible = False
    plot.yaxis.axis_label = "probability of the predicted class after each glimpse"
    plot.yaxis.axis_label_text_font_style = "normal"
    _touchable(plot, plot.quad(**_BOX, source=table, fill_color="colour", line_color="#606060"), _CHAIN_TOOLTIP)
    plot.quad(**_BOX, source=mark, fill_color=None, line_color=PICKED, line_width=4)
    _unfading(
        plot.text("middle", "first", "look", source=table, text_align="center", text_baseline="bottom", y_offset=-3)
    )
    return plot


def number_glimpses(picture: Figure, table: ColumnDataSource) -> None:
    """Write its number at each glimpse's corner of the picture, like the tab of a folder."""
    drawn: dict[str, Any] = {"x": "left", "y": "top", "text": "look", "x_offset": "shift", "y_offset": "drop"}
    drawn |= {"text_baseline": "bottom", "text_font_size": "15px", "text_color": "ink", "padding": 3}
    drawn |= {"background_fill_color": "colour", "border_line_color": "ink"}
    _unfading(picture.text(**drawn, source=table, name="numbers"))


def _unfading(drawn: GlyphRenderer[Any]) -> None:
    """Keep what is not picked as it is."""
    drawn.selection_glyph = drawn.nonselection_glyph = drawn.glyph


def _touchable(plot: Figure, looks: GlyphRenderer[Any], words: str) -> None:
    """Let the looks be hovered over and picked; all that lie under the pointer are outlined, in both plots."""
    from bokeh.models import HoverTool, TapTool

    touched = looks.glyph.clone()
    touched.update(line_color=TOUCHED, line_width=1.5, line_alpha=0.8)
    looks.hover_glyph = touched
    _unfading(looks)
    # The first is the smallest region under the pointer.
    plot.add_tools(HoverTool(renderers=[looks], tooltips=words, limit=1), TapTool(renderers=[looks]))
    plot.toolbar.logo = None


def _outlines(table: ColumnDataSource) -> ColumnDataSource:
    """The table in the order of drawing: fine over coarse, and of one size what matters over what does not."""
    from bokeh.models import ColumnDataSource

    columns = table.data
    area = [
        (right - left) * (bottom - top)
        for left, right, top, bottom in zip(*(columns[name] for name in _EDGES), strict=True)
    ]
    order = sorted(range(len(area)), key=lambda i: (-area[i], columns["strength"][i]))
    kept = (*_EDGES, "colour", "strength", "thickness")
    drawn = {name: [columns[name][i] for i in order] for name in kept}
    drawn["casing"] = [width + 2 for width in drawn["thickness"]]
    drawn["faint"] = [0.5 * strength for strength in drawn["strength"]]
    return ColumnDataSource(drawn)


def _colour_bar(scale: Scale) -> Any:
    from bokeh.models import FixedTicker, LinearColorMapper
    from bokeh.models.annotations import ColorBar

    shades = [hexadecimal(scale.colour(i / (_SHADES - 1))) for i in range(_SHADES)]
    ticks = scale.ticks()
    # Texts, not Bokeh's numbers: a contribution has a sign.
    return ColorBar(
        color_mapper=LinearColorMapper(palette=shades, low=0, high=1),
        ticker=FixedTicker(ticks=[position for position, _ in ticks]),
        major_label_overrides=dict(ticks),
        title=scale.title,
        title_text_font_style="normal",
        height=14,
        padding=4,
        bar_line_color="#606060",
    )


def _scale_bar(plot: Figure) -> Any:
    from bokeh.models.annotations import ScaleBar
    from bokeh.models.annotations.dimensional import MetricLength

    return ScaleBar(
        range=plot.x_range,
        unit="µm",
        dimensional=MetricLength(ticks=[1, 2, 5, 10, 20, 50, 100, 200, 500], include=["nm", "µm", "mm", "m", "km"]),
        location="bottom_left",
        background_fill_alpha=0.85,
        border_line_color=None,
    )
