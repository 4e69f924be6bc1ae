"""``pyrtrav classify``: many images, a record each."""

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, printed, progress, size, stderr, stdout, table, warn

ROWS = 100
"""Of the printed table: beyond that nobody reads it, and memory is not to grow with the number of images."""

UNREAD = 128 + 13
"""What a shell expects of a program whose output nobody reads any more, as after SIGPIPE."""

_COHORT = "Many images"


def classify(
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders, quoted patterns (** too), tables or URLs.", show_default=False),
    ],
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
    out: Annotated[
        Path | None,
        typer.Option(help="Write a record for every image: .jsonl (as they come), .csv or .parquet."),
    ] = None,
    save_trees: Annotated[Path | None, typer.Option(help="Folder for the parse tree of every image.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pages of thumbnails with results, kept up to date; begin with index.html.",
            rich_help_panel=_COHORT,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip what --out holds already; try failures again.")
    ] = False,
    max_seconds: Annotated[
        float | None,
        typer.Option(help="For opening and reading an image; beyond it has failed.", rich_help_panel=_COHORT),
    ] = None,
    isolate: Annotated[
        str,
        typer.Option(
            help="Decode in a process that may crash: auto (OpenSlide's formats), always or never.",
            metavar="NAME",
            rich_help_panel=_COHORT,
        ),
    ] = "auto",
    engine: Annotated[
        str, typer.Option(help="local, or ray (many machines).", metavar="NAME", rich_help_panel=_COHORT)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of a running Ray cluster; default: one of its own.", rich_help_panel=_COHORT),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of Ray; default: one a GPU, or else one a core.", rich_help_panel=_COHORT),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Classify images; prints a table, or one JSON record a line.

    Example: pyrtrav classify slides/ --out results.jsonl
    """
    from pyrtrav import cohort
    from pyrtrav.explain.gallery import THUMBNAILS
    from pyrtrav.files import make_folder
    from pyrtrav.predict import Predictor

    summary, rows = cohort.Summary(), []
    try:
        with cohort.stopped_by_signals(), ExitStack() as stack:
            predictor = Predictor(
                model, device="cpu" if engine == "ray" else device, isolate=isolate, max_seconds=max_seconds
            )
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
            ours = [path for path in (out, save_trees, index, index and index / THUMBNAILS) if path is not None]
            paths, others = cohort.find_images(images, mpp=mpp, without=ours)
            if others:
                named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
                warn(f"{len(others)} files in the folders are no images that can be opened, and are left out: {named}")
            results = stack.enter_context(cohort.ResultFile(out, resume=resume)) if out is not None else None
            if model is None:
                note(f"model: {predictor.name}", quiet)
            # What is wrong with the folders is told before any worker starts.
            if save_trees is not None:
                make_folder(save_trees)
            pages = None
            if index is not None:
                pages = cohort.Index(index, len(paths), trees=save_trees, isolate=isolate, max_seconds=max_seconds)
            who = cohort.make_engine(
                engine,
                predictor,
                settings,
                contributions=save_trees is not None,
                device=device,
                address=address,
                workers=workers,
            )
            stack.callback(who.close)
            records = stack.enter_context(
                closing(cohort.classify(predictor, paths, settings, out=results, save_trees=save_trees, engine=who))
            )
            if pages is not None:
                stack.enter_context(pages)
            bar = stack.enter_context(progress(quiet))
            task = bar.add_task("classifying", total=len(paths))
            for record in records:
                summary.add(record)
                if pages is not None:
                    pages.add(record)
                if as_json:
                    if not printed(json.dumps(record)) and results is None:
                        raise typer.Exit(UNREAD)
                elif len(rows) < ROWS:
                    rows.append(_row(record))
                bar.advance(task)
            if results is not None:
                results.finish()
    except cohort.Stopped as stopped:
        go_on = f"kept in {out}; go on with the same command and --resume" if out else "not kept: there is no --out"
        warn(f"stopped by {stopped}: {summary.images:,} images are done and {go_on}")
        raise typer.Exit(stopped.exit_code) from None
    if not as_json:
        stdout.print(table(("image", "label", "prob", "looks", "tiles", "of", "read", "seconds"), rows))
        if summary.images > len(rows):
            note(f"and {summary.images - len(rows):,} more{f', which are in {out}' if out else ''}", quiet)
    _report(summary, quiet)


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


def _report(summary: Any, quiet: bool) -> None:
    for text in summary.warnings:
        warn(text)
    for text in summary.notes:
        note(text, quiet)
    for message in summary.failures:
        stderr.print(f"[bold red]failed:[/] {escape(message)}", highlight=False, soft_wrap=True)
    if summary.failures:
        note(f"{len(summary.failures)} of {summary.images} images failed", quiet)
        raise typer.Exit(1)
