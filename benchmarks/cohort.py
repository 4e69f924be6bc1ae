"""Does one command classify thousands of images, name the broken ones, stay small and survive being killed?

    python -m benchmarks.cohort --count 2000 --broken 40
    python -m benchmarks.cohort --count 400 --broken 10 --kills 10

Writes images of mixed formats, some broken in twelve ways, and classifies them by one ``pyrtrav classify``: every good
one must be classified, every bad one named, and the peak of the memory at the end may exceed that after a tenth by 5 %.
Compares images a second with a process a file and with a process a core, each on its own share. ``--kills`` kills a
run at random moments and resumes it, and compares with the undisturbed run. Prints tables, exits with 1 if something
is not as it should be.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cohort_slides import BREAKS, WRITERS, write_cohort

FLAT = 1.05
"""Peak memory at the end over that after a tenth of the images."""

TOLERANCE = 1e-4
"""Of probabilities, which may depend a little on what else is encoded."""

MEASUREMENTS = ("tiles_decoded", "bytes_read", "requests", "bytes_fetched", "pixels_decoded", "seconds")

Record = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One run of the command."""

    code: int
    said: str
    seconds: float
    early_mib: float
    """Peak resident memory after a tenth."""
    peak_mib: float


def command(inputs: Sequence[Path], out: Path, *words: str) -> list[str]:
    call = "from pyrtrav.cli import main; main()"
    return [sys.executable, "-c", call, "classify", *map(str, inputs), "--out", str(out), "--device", "cpu", *words]


def lines_in(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def peak_mib(pid: int) -> float:
    """The largest resident memory of a process so far; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1024 if found else 0.0


def measure(table: Path, out: Path, early: int) -> Measured:
    """Run the command to its end, looking at its memory on the way."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command([table], out), stdout=subprocess.DEVNULL, stderr=said)
        first = last = 0.0
        while process.poll() is None:
            last = peak_mib(process.pid) or last
            if not first and lines_in(out) >= early:
                first = last
            time.sleep(0.05)
        seconds = time.perf_counter() - begun
        said.seek(0)
        return Measured(process.returncode, said.read().decode(errors="replace"), seconds, first, last)


def records_of(out: Path) -> dict[str, Record]:
    """By image; every line must be whole, and no image may stand twice."""
    records = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    found = {record["image"]: record for record in records}
    assert len(found) == len(records), "an image stands twice"
    return found


def problems_of(table: Path, run: Measured, records: dict[str, Record]) -> list[str]:
    """What is not as it should be."""
    with table.open(newline="") as file:
        names = [row["path"] for row in csv.DictReader(file)]
    problems = [f"{name}: has no record" for name in names if name not in records]
    for name, record in records.items():
        wanted = "error" if "-bad-" in name else "ok"
        if record["status"] != wanted:
            problems.append(f"{name}: is {record['status']}, not {wanted}: {record.get('error')}")
        if wanted == "error" and name not in run.said:
            problems.append(f"{name}: is not named at the end")
    broken = any("-bad-" in name for name in names)
    if run.code != int(broken):
        problems.append(f"exit code {run.code}; {run.said[-300:]}")
    if "Traceback" in run.said:
        problems.append("a traceback")
    if run.early_mib and run.peak_mib > FLAT * run.early_mib:
        problems.append(f"memory grew from {run.early_mib:.0f} to {run.peak_mib:.0f} MiB")
    return problems


def differences(one: dict[str, Record], other: dict[str, Record]) -> list[str]:
    """Images whose records differ by more than measurements."""
    found = [f"{name}: only once" for name in one.keys() ^ other.keys()]
    for name in one.keys() & other.keys():
        (first, chances), (second, others) = _split(one[name]), _split(other[name])
        apart = [abs(a - b) for a, b in zip(chances, others, strict=False)]
        if first != second or len(chances) != len(others) or max(apart, default=0) > TOLERANCE:
            found.append(f"{name}: differs")
    return found


def _split(record: Record) -> tuple[Record, list[float]]:
    kept = json.loads(json.dumps(record))
    for name in MEASUREMENTS:
        kept.get("cost", {}).pop(name, None)
    chances = [p for level in kept.pop("levels", []) for p in level["probabilities"].values()]
    kept.pop("prediction", None)
    return kept, chances


def alone(table: Path, count: int, work: Path) -> float:
    """Images a second with a process a file."""
    names = good_ones(table)[:count]
    begun = time.perf_counter()
    for number, path in enumerate(names):
        subprocess.run(command([path], work / f"alone-{number}.jsonl"), check=True, capture_output=True)
    return len(names) / (time.perf_counter() - begun)


def a_core_each(table: Path, count: int, work: Path) -> float:
    """Images a second with a process a core, each with one thread and its own share."""
    cores = len(os.sched_getaffinity(0))
    names = good_ones(table)[:count]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYRTRAV_THREADS": "1"}
    begun = time.perf_counter()
    running = [
        subprocess.Popen(
            command(names[core::cores], work / f"core-{core}.jsonl"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )
        for core in range(cores)
    ]  # fmt: skip
    assert all(process.wait() == 0 for process in running)
    return len(names) / (time.perf_counter() - begun)


def together(table: Path, count: int, work: Path) -> float:
    """Images a second of the same with one process."""
    names = good_ones(table)[:count]
    begun = time.perf_counter()
    subprocess.run(command(names, work / "together.jsonl"), check=True, capture_output=True)
    return len(names) / (time.perf_counter() - begun)


def good_ones(table: Path) -> list[Path]:
    with table.open(newline="") as file:
        return [table.parent / row["path"] for row in csv.DictReader(file) if "-bad-" not in row["path"]]


def killed(table: Path, work: Path, kills: int, seconds: float, seed: int) -> tuple[dict[str, Record], list[int]]:
    """Kill a run at random moments and resume it; returns what it holds at the end, and lines after each kill."""
    draw, out, counts = random.Random(seed), work / "killed.jsonl", []
    for _ in range(kills):
        process = subprocess.Popen(
            command([table], out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Counted from when it begins to write, or most would hit a process that still loads its libraries.
        before = lines_in(out)
        while process.poll() is None and lines_in(out) == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2 * seconds / kills))
        process.kill()
        process.wait()
        counts.append(lines_in(out))
    subprocess.run(command([table], out, "--resume"), capture_output=True, check=False)
    return records_of(out), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=40)
    parser.add_argument(
        "--alone", type=int, default=10, help="images that are classified by a process each; 0 for none"
    )
    parser.add_argument("--share", type=int, default=200, help="images for the comparison with a process a core")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an empty folder; default: a temporary one, removed at the end")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        problems = compare(asked, Path(asked.work or temporary))
    Console().print("\n".join(problems) if problems else "all as it should be", highlight=False)
    sys.exit(bool(problems))


def compare(asked: argparse.Namespace, work: Path) -> list[str]:
    """Do what was asked; prints tables and returns what is not as it should be."""
    say = Console(width=200, highlight=False).print
    table = write_cohort(work / "slides", asked.count, asked.broken)
    out = work / "results.jsonl"
    run = measure(table, out, asked.count // 10)
    records = records_of(out)
    problems = problems_of(table, run, records)
    say(f"{asked.count} images of {len(WRITERS)} formats ({', '.join(WRITERS)}), {asked.broken} broken")
    say(f"ways: {', '.join(BREAKS)}\n")
    say("| run | images/s | peak memory after a tenth | at the end |\n|---|---|---|---|")
    rate = asked.count / run.seconds
    say(f"| all, one command | {rate:.1f} | {run.early_mib:.0f} MiB | {run.peak_mib:.0f} MiB |")
    if asked.alone:
        say(f"| {asked.share} good ones, one command | {together(table, asked.share, work):.1f} | | |")
        say(f"| the same, a process a core | {a_core_each(table, asked.share, work):.1f} | | |")
        say(f"| {asked.alone} of them, a process a file | {alone(table, asked.alone, work):.2f} | | |")
    if asked.kills:
        again, counts = killed(table, work, asked.kills, run.seconds, asked.seed)
        problems += differences(records, again)
        say(f"\nkilled {asked.kills} times, after {counts} lines; {len(again)} records at the end")
    return problems


if __name__ == "__main__":
    main()
