"""``pyrtrav evaluate``: how right a model is on labelled images, and what being right costs."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, pairs, progress, stderr, stdout, table, warn
from pyrtrav.cli.robustness import print_robustness
from pyrtrav.errors import ConfigError

_ROBUST = "Robustness, instead of the other figures"


def evaluate(
    data: Annotated[
        Path, typer.Option(help="A folder with a folder of images for each class, or a CSV with path,label.")
    ],
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all; default: test, else val, else all images.", metavar="NAME"),
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
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Looks to try beside, as 1,4,16, or none; default: powers of two up to what is attended.",
            metavar="N,N,...",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Evaluate no more than so many images, drawn by --seed.", metavar="N")
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option("--corruptions", help="Accuracy under 15 corruptions at 5 severities.", rich_help_panel=_ROBUST),
    ] = False,
    attack: Annotated[
        str | None,
        typer.Option(help="Accuracy under attack: fgsm, pgd or pgd-paper.", metavar="NAME", rich_help_panel=_ROBUST),
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="Greatest changes of a value that an attack may make, in 255ths; default: 4.",
            metavar="X,X,...",
            rich_help_panel=_ROBUST,
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(help="Change of a value in a step of pgd, in 255ths; default: 1.", rich_help_panel=_ROBUST),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Steps of pgd; default: 4.", metavar="N,N,...", rich_help_panel=_ROBUST),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            help="Change and judge copies of larger images, their longer side so many pixels.",
            metavar="N",
            rich_help_panel=_ROBUST,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.json, predictions.csv, confusion.png, cost.png; or robustness.json, .png."
        ),
    ] = None,
    save_exits: Annotated[
        Path | None,
        typer.Option(
            help="Write a copy of the model that knows these images' confidences, for --mean-budget.", metavar="FILE"
        ),
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Judge a model on labelled images: figures with intervals, by class, and accuracy against cost.

    Example: pyrtrav evaluate --data sample_data/tissue --out evaluation
    """
    from pyrtrav.files import make_folder
    from pyrtrav.predict import Predictor
    from pyrtrav.robustness.options import make_plan
    from pyrtrav.training.early_exit import check_save, save_with_exits
    from pyrtrav.training.held_out import limited, load_held_out
    from pyrtrav.training.report import evaluate_model, parse_budgets
    from pyrtrav.training.report_files import write_report

    tried = None if budgets is None else parse_budgets(budgets)
    plan = make_plan(corruptions=corruptions, attack=attack, eps=eps, step=step, steps=steps, side=side, seed=seed)
    if plan is not None and (budgets is not None or save_exits is not None):
        raise ConfigError("--budgets and --save-exits go without --corruptions and --attack")
    predictor = Predictor(model, device=device)
    card = predictor.card
    held_out = limited(load_held_out(data, card.classes, split, training=card.training), limit, seed)
    look = {"select": select, "tau": tau, "k": k, "budget": budget, "depth": depth, "seed": seed}
    look |= {"stop_at": stop_at, "mean_budget": mean_budget}
    settings = predictor.settings(**look)
    if save_exits is not None:
        check_save(predictor, settings, save_exits)
    if out is not None:
        make_folder(out)
    for warning in held_out.warnings:
        warn(warning)
    if model is None:
        note(f"model: {predictor.name}", quiet)
    command = shlex.join(["pyrtrav", *sys.argv[1:]])
    if plan is not None:
        _robustness(predictor, held_out, look, plan, mpp, command, out, as_json, quiet)
        return
    with progress(quiet) as bar:
        task = bar.add_task("evaluating", total=len(held_out.examples))

        def watch(run: str, done: int) -> None:
            bar.update(task, description=f"evaluating, {run}", completed=done)

        evaluated = evaluate_model(predictor, held_out, look, budgets=tried, mpp=mpp, command=command, watch=watch)
    report = evaluated.report
    written = write_report(evaluated, out) if out is not None else {}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(report)
    if save_exits is not None:
        save_with_exits(predictor, evaluated.run, save_exits)
        written["model"] = save_exits
    if written and not as_json:
        stdout.print(pairs([(name, path) for name, path in written.items()]))
    _note_limits(report, quiet)
    _fail_where_images_failed(report, quiet)


def _robustness(
    predictor: Any,
    held_out: Any,
    look: dict[str, Any],
    plan: Any,
    mpp: float | None,
    command: str,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from pyrtrav.robustness.options import write_robustness
    from pyrtrav.robustness.report import evaluate_robustness

    with progress(quiet) as bar:
        task = bar.add_task(f"evaluating in {len(plan.keys)} ways", total=len(held_out.examples))
        report = evaluate_robustness(
            predictor, held_out, look, plan, mpp=mpp, command=command, watch=lambda done: bar.advance(task, done)
        )
    written = write_robustness(report, out) if out is not None else {}
    if as_json:
        typer.echo(json.dumps(report))
    else:
        print_robustness(report)
        if written:
            stdout.print(pairs([(name, path) for name, path in written.items()]))
    _fail_where_images_failed(report, quiet)


_MOST_SHOWN = 12
"""Classes up to which a terminal shows the confusion matrix."""


def _print(report: dict[str, Any]) -> None:
    data, metrics = report["data"], report["metrics"]
    unit = report["bootstrap"]["unit"]
    stdout.print(
        table(
            ("metric", "value", f"95% interval (by {unit})"),
            [(name.replace("_", " "), _number(found["value"]), _interval(found)) for name, found in metrics.items()],
            title=f"{data['images']:,} images of {data['path']} ({data['split']})",
        )
    )
    columns = ("class", "images", "recall", "specificity", "precision", "f1", "auroc")
    stdout.print(
        table(
            columns,
            [[_number(found[name]) for name in columns] for found in report["per_class"]],
            title="by class",
        )
    )
    if len(report["confusion"]["classes"]) <= _MOST_SHOWN:
        _print_confusion(report["confusion"])
    points = [(f"depth {point['depth']}", point) for point in report["by_depth"]]
    points += [(f"budget {point['budget']}", point) for point in report["by_budget"]]
    points += [(f"stop at {point['stop_at']:g}", point) for point in report["by_confidence"]]
    stdout.print(
        table(
            ("", "accuracy", "95% interval", "looks", "MMAC", "Mpx", "seconds"),
            [_point(name, point) for name, point in points],
            title="accuracy against cost, means an image (MMAC: 10^6 multiply-accumulates, Mpx: decoded)",
        )
    )


def _print_confusion(confusion: dict[str, Any]) -> None:
    failed = any(confusion["failed"])
    rows = [
        (name, *counts, *([missed] if failed else []))
        for name, counts, missed in zip(confusion["classes"], confusion["counts"], confusion["failed"], strict=True)
    ]
    columns = ("true", *confusion["classes"], *(["failed"] if failed else []))
    stdout.print(table(columns, rows, title="confusion: true classes down, predicted ones across"))


def _point(name: str, point: dict[str, Any]) -> tuple[str, ...]:
    accuracy, cost = point["metrics"]["accuracy"], point["cost"]
    return (
        name,
        _number(accuracy["value"]),
        _interval(accuracy),
        _number(cost["fixations"], 1),
        _number(cost["macs"], 1, 1e6),
        _number(cost["pixels_decoded"], 3, 1e6),
        _number(cost["seconds"]),
    )


def _number(value: Any, digits: int = 3, unit: float = 1) -> str:
    if value is None:
        return "-"
    return f"{value / unit:,.{digits}f}" if isinstance(value, float) else str(value)


def _interval(found: dict[str, Any]) -> str:
    return "-" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"


def _note_limits(report: dict[str, Any], quiet: bool) -> None:
    """What the figures cannot say."""
    bootstrap = report["bootstrap"]
    if report["metrics"]["accuracy"]["value"] in (0, 1):
        note(
            f"all images are alike right or wrong, so resampling shows no spread; of {bootstrap['units']} "
            f"{bootstrap['unit']}s, errors of up to {min(1, 3 / bootstrap['units']):.1%} could still be missed",
            quiet,
        )
    if report["model"]["multi_level"] is False and len(report["by_depth"]) > 1:
        note("the model was trained for its last depth alone (multi_level is off): earlier ones mean little", quiet)


def _fail_where_images_failed(report: dict[str, Any], quiet: bool) -> None:
    failures = report["failures"]
    for failure in failures:
        run = f" ({failure['run']})" if "run" in failure else ""
        stderr.print(f"[bold red]failed{run}:[/] {escape(failure['message'])}", highlight=False, soft_wrap=True)
    if failures:
        note(f"{len(failures)} of {report['data']['images']} images failed and count as wrong", quiet)
        raise typer.Exit(1)
