"""``pyrtrav train``: a model from labelled images."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import note, pairs, progress, stderr, stdout, warn


def train(
    data: Annotated[
        Path, typer.Option(help="A folder with a folder of images for each class, or a CSV with path,label.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model, the log and the checkpoint.")] = Path("trained"),
    method: Annotated[str, typer.Option(help="How to look.")] = "topdown",
    encoder: Annotated[str, typer.Option(help="What turns a patch into features.")] = "residual",
    config: Annotated[Path | None, typer.Option(help="Options from a TOML file.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One option, as key=value; may be given again.")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            help="Boxes around what matters in some training images, to teach where to look: a CSV with "
            "path,left,top,right,bottom, or GeoJSON named after its image (a file, or a folder of them).",
        ),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            help="Cross-validation: validate on the 2nd of 5 parts with 2/5, train on the others.", metavar="K/N"
        ),
    ] = None,
    purpose: Annotated[str, typer.Option(help="What the model is for; travels in its file.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a model; only the tiles that it attends to are decoded.

    Example: pyrtrav train --data sample_data/tissue --set epochs=10
    """
    from pyrtrav import ranks
    from pyrtrav.methods import find_method
    from pyrtrav.model_file import load_model
    from pyrtrav.training.data import load_dataset
    from pyrtrav.training.folds import one_fold
    from pyrtrav.training.hints import Hints, check_policy, load_hints
    from pyrtrav.training.log import EpochReport
    from pyrtrav.training.setup import plan_training
    from pyrtrav.training.trainer import Trainer

    dataset = load_dataset(data, seed=seed)
    if fold is not None:
        dataset = one_fold(dataset, fold, seed)
    with ranks.joined():
        first = ranks.rank() == 0
        quiet = quiet or not first
        for warning in dataset.warnings if first else ():
            warn(warning)
        card, training = plan_training(
            dataset, method=method, encoder=encoder, config_file=config, assignments=set_ or (), purpose=purpose
        )
        hints = Hints()
        if regions is not None:
            check_policy(find_method(card.method), card.max_depth)
            hints = load_hints(regions, dataset)
            trained = [example.path in hints.boxes for example in dataset.split("train")]
            note(f"hints for {sum(trained)} of {len(trained)} training images", quiet)
        with progress(quiet) as bar:
            task = bar.add_task("training", total=None)

            def show(report: EpochReport) -> None:
                bar.update(task, description=f"{report.stage}", completed=report.epoch, total=report.epochs)
                if report.warning:
                    warn(report.warning)
                figures = ", ".join(f"{name} {value:.3g}" for name, value in report.metrics.items())
                if not quiet:
                    stderr.print(
                        f"{report.stage}  epoch {report.epoch}/{report.epochs}  {figures}  {report.seconds:.1f} s",
                        highlight=False,
                        soft_wrap=True,
                    )

            command = shlex.join(["pyrtrav", *sys.argv[1:]])
            trainer = Trainer(
                dataset, card, training, out, seed=seed, device=device, on_epoch=show, command=command, hints=hints
            )
            path = trainer.run(resume=resume)
    if not first:
        return
    trained = load_model(path).card
    reached = trained.training.get("validation", {})
    note(f"beside the model in {out}: summary.json, learning_curve.png, log.jsonl", quiet)
    if as_json:
        typer.echo(json.dumps({"model": str(path), "selection": trained.selection, "training": trained.training}))
        return
    stdout.print(
        pairs(
            [
                ("model", path),
                ("selection", ", ".join(f"{name} {value}" for name, value in trained.selection.items())),
                *((name.replace("_", " "), value) for name, value in reached.items()),
            ]
        )
    )
