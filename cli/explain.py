"""``pyrtrav explain``: what was looked at, as data and as pictures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, pairs, size, stdout, warn


def explain(
    image: Annotated[str | None, typer.Argument(help="The image, or its URL.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the parse tree here (JSON).")] = None,
    tree: Annotated[
        Path | None, typer.Option(help="Redraw this saved tree instead of looking again; needs no model.")
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(help="Picture of the attended regions; default: beside --out, with .png.", show_default=False),
    ] = None,
    foveated: Annotated[
        Path | None, typer.Option(help="Picture of every place at the resolution at which it was seen.")
    ] = None,
    model: o.Model = None,
    select: o.Select = None,
    tau: o.Tau = None,
    k: o.K = None,
    budget: o.Budget = None,
    depth: o.Depth = None,
    seed: o.Seed = 0,
    mpp: o.Mpp = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Classify one image and show where it was looked at; or redraw a saved tree.

    Example: pyrtrav explain slide.svs --out tree.json --foveated seen.png
    """
    from pyrtrav import explanation
    from pyrtrav.tree import ParseTree

    if tree is not None:
        found = ParseTree.load(tree)
        if overlay is None and foveated is None:
            overlay = explanation.default_overlay(tree)
    else:
        if image is None or out is None:
            raise typer.BadParameter("give an IMAGE and --out tree.json, or --tree tree.json")
        explanation.check_targets(image, out, overlay or explanation.default_overlay(out), foveated)
        from pyrtrav.predict import Predictor

        predictor = Predictor(model, device=device)
        settings = predictor.settings(select=select, tau=tau, k=k, budget=budget, depth=depth, seed=seed)
        if model is None:
            note(f"model: {predictor.name}", quiet)
        found = predictor.explain(image, settings, mpp=mpp)
    written = explanation.write(found, out=out, overlay=overlay, foveated=foveated, image=image)
    if as_json:
        typer.echo(json.dumps(found.record))
        return
    if quiet:
        return
    for warning in found.record.get("warnings", ()):
        warn(warning)
    cost = found.record["cost"]
    stdout.print(
        pairs(
            [
                ("image", found.record["image"]),
                ("prediction", f"{found.label} ({found.probability:.3f})"),
                (
                    "by depth",
                    ", ".join(f"{level['depth']}: {level['label']}" for level in found.record["levels"]),
                ),
                ("looks", f"{cost['fixations']}, to depth {max(node.depth for node in found.nodes)}"),
                (
                    "tiles",
                    f"{cost['tiles_distinct']:,} of {cost['tiles_total']:,}, {size(cost['bytes_read'])} read",
                ),
                *((name, path) for name, path in written.items()),
            ]
        )
    )
