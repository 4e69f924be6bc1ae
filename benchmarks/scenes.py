"""A real task: four labels of 660 street scenes by signs that cover about 0.12 % of their pixels.

    python -m benchmarks.scenes prepare
    python -m benchmarks.scenes run --track hints --method topdown --folds 0 --epochs "[2,2,2,4]"
    python -m benchmarks.scenes run                       # everything: five folds, two tracks, all methods
    python -m benchmarks.scenes report --out docs/scenes.md
    python -m benchmarks.scenes pictures

Two tracks: ``labels`` only, and ``hints``, where the boxes of the signs in the training scenes teach `topdown` where to
look. Every (track, method, fold, seed) with its settings is a job. A job goes on from its checkpoint, and what is done
is a line of ``results.jsonl`` and is not done again, so that a run may be cut short and asked for again at any time.
Any option of method, encoder and training can be changed by ``--set``; other settings make other jobs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def run(asked: argparse.Namespace) -> None:
    """Do the jobs that are not done."""
    # Late: the size of the cache is read when the package is imported.
    import torch
    from rich.console import Console

    from benchmarks.results import append_result, read_results
    from benchmarks.scenes_data import convert_all
    from benchmarks.scenes_job import plan_jobs, run_job
    from pyrtrav.training.log import EpochReport

    torch.set_num_threads(asked.threads)
    console = Console(stderr=True, highlight=False)
    convert_all(asked.data, asked.work, lambda: None)
    jobs = plan_jobs(
        asked.track,
        asked.method,
        asked.folds,
        asked.seeds,
        epochs=asked.epochs,
        hint_share=asked.hint_share,
        assignments=asked.set,
    )
    results = asked.work / "results.jsonl"
    done = {row["name"] for row in read_results(results)}
    waiting = [job for job in jobs if job.key not in done]
    console.print(f"{len(jobs)} jobs, {len(jobs) - len(waiting)} of them done")

    def show(report: EpochReport) -> None:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in report.metrics.items())
        console.print(f"  {report.stage}  {report.epoch}/{report.epochs}  {figures}  {report.seconds:.1f} s")

    for job in waiting:
        console.print(job.name)
        if asked.dry:
            continue
        record = run_job(job, asked.data, asked.work, show)
        append_result(results, record)
        right = sum(row["label"] == row["predicted"] for row in record["rows"])
        console.print(f"  {right} of {len(record['rows'])} right")


def prepare(asked: argparse.Namespace) -> None:
    """Convert the scenes."""
    from rich.progress import Progress

    from benchmarks.scenes_data import convert_all, load_scenes

    with Progress() as bar:
        task = bar.add_task("converting", total=len(load_scenes(asked.data)))
        count = convert_all(asked.data, asked.work, lambda: bar.advance(task))
    print(f"{count} scenes converted, in {asked.work / 'pyramids'}")


def report(asked: argparse.Namespace) -> None:
    """Print the tables, and write them as markdown where that is asked for."""
    from benchmarks.results import read_results
    from benchmarks.scenes_data import load_scenes
    from benchmarks.scenes_report import markdown
    from pyrtrav.files import written_whole

    text = markdown(read_results(asked.work / "results.jsonl"), load_scenes(asked.data))
    print(text)
    if asked.out is not None:
        with written_whole(asked.out) as beside:
            beside.write_text(text)


def pictures(asked: argparse.Namespace) -> None:
    """Draw one scene that was classified rightly and one that was not."""
    from benchmarks.results import read_results
    from benchmarks.scenes_report import draw_pictures

    for path in draw_pictures(read_results(asked.work / "results.jsonl"), asked.work, asked.out or asked.work):
        print(path)


def parse() -> argparse.Namespace:
    from benchmarks.scenes_arms import ARMS, TRACKS

    data = Path(os.environ.get("PYRTRAV_DATA") or "../shared/data") / "scenes"
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, default=data, help="the scenes; default: PYRTRAV_DATA/scenes")
    shared.add_argument("--work", type=Path, default=Path("runs/scenes"), help="pyramids (2 GB), models, results")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="prepare|run|report|pictures")
    commands.add_parser("prepare", parents=[shared], help=prepare.__doc__).set_defaults(do=prepare)
    running = commands.add_parser("run", parents=[shared], help=run.__doc__)
    running.set_defaults(do=run)
    running.add_argument("--track", action="append", choices=TRACKS, help="may be given again; default: both")
    running.add_argument("--method", action="append", choices=ARMS, help="may be given again; default: all")
    running.add_argument("--folds", type=int, nargs="+", default=list(range(5)), choices=range(5), metavar="K")
    running.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    running.add_argument("--epochs", help='of a stage: "20", or "[4,4,6,20]" for each; default: the method\'s')
    running.add_argument("--hint-share", type=float, default=1.0, help="share of the training scenes that have hints")
    running.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of pyrtrav train")
    running.add_argument("--threads", type=int, default=1, help="of torch")
    running.add_argument("--cache-gib", type=float, default=3.0, help="memory for decoded tiles; 3 hold all scenes")
    running.add_argument("--dry", action="store_true", help="name the jobs that are not done, and do none")
    telling = commands.add_parser("report", parents=[shared], help=report.__doc__)
    telling.set_defaults(do=report)
    telling.add_argument("--out", type=Path, help="a markdown file")
    drawing = commands.add_parser("pictures", parents=[shared], help=pictures.__doc__)
    drawing.set_defaults(do=pictures)
    drawing.add_argument("--out", type=Path, help="a folder; default: --work")
    asked = parser.parse_args()
    if asked.do is run:
        asked.track, asked.method = asked.track or list(TRACKS), asked.method or list(ARMS)
        os.environ.setdefault("PYRTRAV_CACHE_BYTES", str(int(asked.cache_gib * 2**30)))
    return asked


def main() -> None:
    asked = parse()
    asked.work.mkdir(parents=True, exist_ok=True)
    asked.do(asked)


if __name__ == "__main__":
    main()
