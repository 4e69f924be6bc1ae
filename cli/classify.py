"""``pyrtrav classify``: many images, a record each."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, progress, size, stderr, stdout, table, warn


def classify(
    images: Annotated[list[str], typer.Argument(help="Images, folders of images, or URLs.", show_default=False)],
    model: o.Model = None,
    select: o.Select = None,
    tau: o.Tau = None,
    k: o.K = None,
    budget: o.Budget = None,
    depth: o.Depth = None,
    seed: o.Seed = 0,
    mpp: o.Mpp = None,
    device: o.Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Write a record for every image: .jsonl (as they come), .csv or .parquet."),
    ] = None,
    save_trees: Annotated[Path | None, typer.Option(help="Folder for the parse tree of every image.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what --out holds already; try failures again.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Classify images; prints a table, or one JSON record a line.

    Example: pyrtrav classify slides/ --out results.jsonl
    """
    from pyrtrav import cohort
    from pyrtrav.predict import Predictor

    predictor = Predictor(model, device=device)
    settings = predictor.settings(select=select, tau=tau, k=k, budget=budget, depth=depth, seed=seed)
    paths, others = cohort.find_images(images)
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        warn(f"{len(others)} files in the folders are no images that can be opened, and are left out: {named}")
    results = cohort.ResultFile(out, resume=resume) if out is not None else None
    if model is None:
        note(f"model: {predictor.name}", quiet)
    records = []
    with progress(quiet) as bar:
        task = bar.add_task("classifying", total=len(paths))
        for record in cohort.classify(predictor, paths, settings, mpp=mpp, out=results, save_trees=save_trees):
            records.append(record)
            if as_json:
                typer.echo(json.dumps(record))
            bar.advance(task)
    if results is not None:
        results.finish()
    if not as_json:
        stdout.print(
            table(
                ("image", "label", "prob", "looks", "tiles", "of", "read", "seconds"),
                map(_row, records),
            )
        )
    _report(records, quiet)


def _row(record: dict[str, Any]) -> tuple[Any, ...]:
    if record["status"] != "ok":
        return record["image"], "failed", "", "", "", "", "", ""
    label, cost = record["prediction"]["label"], record["cost"]
    return (
        record["image"],
        label,
        f"{record['prediction']['probabilities'][label]:.3f}",
        cost["fixations"],
        f"{cost['tiles_distinct']:,}",
        f"{cost['tiles_total']:,}",
        size(cost["bytes_read"]),
        f"{cost['seconds']['total']:.2f}",
    )


def _report(records: list[dict[str, Any]], quiet: bool) -> None:
    for record in records:
        for warning in record.get("warnings", ()):
            warn(f"{record['image']}: {warning}")
    failed = [record for record in records if record["status"] != "ok"]
    for record in failed:
        stderr.print(f"[bold red]failed:[/] {escape(record['error']['message'])}", highlight=False, soft_wrap=True)
    if failed:
        note(f"{len(failed)} of {len(records)} images failed", quiet)
        raise typer.Exit(1)
