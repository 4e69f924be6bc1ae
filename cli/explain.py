"""``pyrtrav explain``: what was looked at, as data and as pictures."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, pairs, size, stdout, warn
from pyrtrav.stopping import stopped_by_signals

if TYPE_CHECKING:
    from pyrtrav.tree import ParseTree

_PICTURES = ("overlay", "foveated", "strip", "occlusion", "html", "geojson", "bounds_origin", "crs", "colour")
_LOOK = ("model", "select", "tau", "k", "budget", "depth", "seed", "stop_at", "mean_budget", "device")
_NOT_OF_ENCODERS = (*_PICTURES, *(name for name in _LOOK if name != "model"), "mpp", "as_json")


@stopped_by_signals()
def explain(
    context: typer.Context,
    image: Annotated[str | None, typer.Argument(help="The image, or its URL.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the parse tree here (JSON).")] = None,
    tree: Annotated[
        Path | None, typer.Option(help="Redraw this saved tree instead of looking again; needs no model.")
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            help="Picture of the attended regions, .png or .pdf; default: beside --out, with .png.", show_default=False
        ),
    ] = None,
    foveated: Annotated[
        Path | None, typer.Option(help="Picture of every place at the resolution at which it was seen, .png or .pdf.")
    ] = None,
    strip: Annotated[
        Path | None,
        typer.Option(
            help="Picture of what each glimpse saw, with the prediction after it (mgnet, gfnet); of other trees the "
            "looks that matter most; .png or .pdf."
        ),
    ] = None,
    occlusion: Annotated[
        Path | None,
        typer.Option(help="Picture of how much noise over each place changes the prediction, .png or .pdf."),
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Without an image: picture of what the model's encoder sees, and of the scales that it learned."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Picture, tree and figures in one page to explore, without a server or a network."),
    ] = None,
    geojson: Annotated[
        Path | None, typer.Option(help="The regions as annotations for QuPath, or for a map with --crs.")
    ] = None,
    bounds_origin: Annotated[
        bool,
        typer.Option(
            "--bounds-origin",
            help="GeoJSON counts from the corner of the slide's bounds, as QuPath does with OpenSlide.",
        ),
    ] = False,
    crs: Annotated[
        str | None,
        typer.Option(
            help="GeoJSON on the map: wgs84 (longitude, latitude) or native (the file's own).", metavar="NAME"
        ),
    ] = None,
    colour: Annotated[
        str | None,
        typer.Option(
            help="What overlay, strip and page show as colour: score or contribution; "
            "default: score, but contribution where glimpses follow each other.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    model: o.Model = None,
    select: o.Select = None,
    tau: o.Tau = None,
    k: o.K = None,
    budget: o.Budget = None,
    depth: o.Depth = None,
    seed: o.Seed = 0,
    stop_at: o.StopAt = None,
    mean_budget: o.MeanBudget = None,
    mpp: o.Mpp = None,
    device: o.Device = "auto",
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Classify one image and show where it was looked at; or redraw a saved tree.

    Example: pyrtrav explain slide.svs --out tree.json --foveated seen.png
    """
    from pyrtrav import explanation
    from pyrtrav.pyramid.open import check_mpp
    from pyrtrav.tree import ParseTree

    if encoder is not None:
        if image is not None or tree is not None or out is not None:
            raise typer.BadParameter("--encoder is of a model alone; leave out the image, --tree and --out")
        _refuse(context, _NOT_OF_ENCODERS, "is of an image, and --encoder of a model alone; leave one of them out")
        _explain_encoder(model, encoder, quiet)
        return
    if tree is not None:
        _refuse(context, _LOOK, "says how to look, and --tree draws what was seen; leave one of them out")
        found = ParseTree.load(tree)
        if mpp is not None:
            check_mpp(mpp)
            found = replace(found, mpp=mpp)
        if overlay is None and out is None and not (foveated or strip or occlusion or html or geojson):
            overlay = explanation.default_overlay(tree)
    elif image is None or out is None:
        raise typer.BadParameter("give an IMAGE and --out tree.json, or --tree tree.json")
    if overlay is None and out is not None:
        overlay = explanation.default_overlay(out)
    if overlay is None and strip is None and html is None:
        _refuse(
            context, ["colour"], "is of the overlay, the strip and the page; ask for one: --overlay, --strip, --html"
        )
    targets = explanation.Targets(
        out=out,
        overlay=overlay,
        foveated=foveated,
        strip=strip,
        occlusion=occlusion,
        page=html,
        geojson=geojson,
        colour=colour,
        bounds_origin=bounds_origin,
        drawn_from=tree,
        crs=crs,
    )
    if tree is None:
        targets.check(image)
        from pyrtrav.occlusion import SQUARES
        from pyrtrav.predict import Predictor

        predictor = Predictor(model, device=device)
        settings = predictor.settings(
            select=select,
            tau=tau,
            k=k,
            budget=budget,
            depth=depth,
            seed=seed,
            stop_at=stop_at,
            mean_budget=mean_budget,
        )
        if model is None:
            note(f"model: {predictor.name}", quiet)
        found = predictor.explain(image, settings, mpp=mpp, squares=0 if occlusion is None else SQUARES)
    written = explanation.write(found, targets, image=image)
    if tree is not None and not explanation.is_as_it_was(found, image):
        seen = image or found.record["input"]["path"]
        warn(f"{seen}: is not the image as it was when {tree} was made (other content or time); drawn all the same")
    if as_json:
        typer.echo(json.dumps({name: value for name, value in found.record.items() if name != "occlusion"}))
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
                *_steps(found),
                (
                    "tiles",
                    f"{cost['tiles_distinct']:,} of {cost['tiles_total']:,}, {size(cost['bytes_read'])} read",
                ),
                *((name, path) for name, path in written.items()),
            ]
        )
    )


def _explain_encoder(model: Path | None, picture: Path, quiet: bool) -> None:
    from pyrtrav.encoders.portrait import save_portrait
    from pyrtrav.model_file import load_model

    loaded = load_model(model)
    save_portrait(loaded.model.encoder, picture, f"Encoder {loaded.card.encoder.name} of {Path(loaded.path).name}")
    if not quiet:
        stdout.print(pairs([("encoder", picture)]))


def _steps(tree: "ParseTree") -> list[tuple[str, str]]:
    """The prediction after each depth or glimpse, and how many looks there were."""
    from pyrtrav.explain.chain import is_chain

    levels, cost = tree.record["levels"], tree.record["cost"]
    left = ", sure enough to leave" if cost.get("left_early") else ""
    first = int(is_chain(tree))
    said = ", ".join(f"{level['depth'] + first}: {level['label']}" for level in levels)
    if first:
        return [("by glimpse", said), ("glimpses", f"{cost['fixations']}{left}")]
    deepest = max(node.depth for node in tree.nodes)
    return [("by depth", said), ("looks", f"{cost['fixations']}, to depth {deepest}{left}")]


def _refuse(context: typer.Context, options: Iterable[str], reason: str) -> None:
    """Raise BadParameter where one of these options is given, be it with its default."""
    for name in options:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(f"--{name.removeprefix('as_').replace('_', '-')} {reason}")
