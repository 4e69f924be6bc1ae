"""``pyrtrav info``: what an image is, and what looking at it costs."""

import json
from typing import Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import pairs, stdout, table


def info(
    image: Annotated[str, typer.Argument(help="The image, or its URL.", show_default=False)],
    base: Annotated[int, typer.Option(min=1, help="Side of a patch in pixels, for the costs.")] = 64,
    mpp: o.Mpp = None,
    as_json: o.Json = False,
) -> None:
    """Show levels, tiles, resolution, and what a glance and a look at everything would cost.

    Example: pyrtrav info slide.svs
    """
    from pyrtrav.pyramid import open_pyramid
    from pyrtrav.pyramid.costs import looking_costs
    from pyrtrav.pyramid.inspect import describe

    with open_pyramid(image, mpp=mpp) as pyramid:
        described = describe(pyramid)
        described["costs"] = looking_costs(pyramid, base)
    if as_json:
        typer.echo(json.dumps(described))
        return
    bounds = described["bounds"]
    mpp_text = f"{described['mpp']:.4g} um a pixel" if described["mpp"] else "unknown (none is needed)"
    if described["mpp"] is None and described["said_mpp"]:
        mpp_text = (
            f"unknown: the file says {described['said_mpp']} um, which is not believed; give the true one with --mpp"
        )
    stdout.print(
        pairs(
            [
                ("image", described["path"]),
                ("backend", described["backend"]),
                ("size", f"{described['width']:,} x {described['height']:,} px"),
                ("mpp", mpp_text),
                (
                    "bounds",
                    f"x {bounds['x']:g}, y {bounds['y']:g}, {bounds['width']:g} x {bounds['height']:g}",
                ),
                ("background", ", ".join(map(str, described["background"]))),
                *(
                    [("converted", described["properties"]["converted"])]
                    if "converted" in described["properties"]
                    else []
                ),
            ]
        )
    )
    stdout.print(
        table(
            ("level", "width", "height", "downsample", "tile", "tiles"),
            [
                (
                    level["index"],
                    f"{level['width']:,}",
                    f"{level['height']:,}",
                    f"{level['downsample']:.4g}",
                    f"{level['tile_width']} x {level['tile_height']}",
                    f"{level['tiles']:,}",
                )
                for level in described["levels"]
            ],
            title="stored levels",
        )
    )
    stdout.print(
        table(
            ("depth", "cells", "downsample", "level read", "tiles", "Mpx decoded"),
            [
                (
                    cost["depth"],
                    f"{cost['cells']:,}",
                    f"{cost['downsample']:.4g}",
                    cost["level"],
                    f"{cost['tiles']:,}",
                    f"{cost['pixels'] / 1e6:,.1f}",
                )
                for cost in described["costs"]
            ],
            title=f"looking at every cell, with patches of {base} px (depth 0 is the glance)",
        )
    )
