"""The results file: a record a line, appended as they come, from which a run is resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from pyrtrav.cohort.tables import require_arrow, write_csv, write_parquet
from pyrtrav.errors import ConfigError, TreeError
from pyrtrav.files import append_line, written_whole
from pyrtrav.lock import WriterLock
from pyrtrav.predict import Input, Predictor
from pyrtrav.selection import Settings
from pyrtrav.tree import RESULT_SCHEMA, Record, check

FORMATS = (".jsonl", ".csv", ".parquet")

STEM_BYTES = 200
"""Of a file name, which has 255 in most file systems: the rest is for the endings, also of a file half written."""


def resume_key(record: Record) -> str:
    """Two runs of the same image, as it is now, with the same settings and model have the same key."""
    parts = [record["input"]["path"], record["input"]["fingerprint"], record["settings"], record["model"]["sha256"]]
    return json.dumps(parts, sort_keys=True)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _question(record: Record) -> bytes:
    """Which image, whatever it holds now, was looked at how."""
    return _digest(json.dumps([record["input"]["path"], record["settings"], record["model"]["sha256"]], sort_keys=True))


class _Line(NamedTuple):
    """Where a record stands in the file."""

    start: int
    key: bytes
    """Of its resume key."""


class ResultFile:
    """Records by line as they come; CSV and Parquet are made from the lines when they are all there.

    The lines of ``results.csv`` are kept in ``results.csv.jsonl``, from which a run is resumed. No other process can
    write to the file meanwhile. Of every record only its place is held in memory.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        """Take the file, which is new or, with ``resume``, holds earlier results; give it back with ``close``.

        Raises:
            ConfigError: it is there already, or is none of ours, or another process writes to it.
        """
        self._format = Path(path).suffix
        self.path = _followed(Path(path))
        if self._format not in FORMATS:
            raise ConfigError(f"{path}: results are written as {', '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
        if self.path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file in it")
        if self._format == ".parquet":
            require_arrow()
        kept = self.path if self._format == ".jsonl" else self.path.with_name(self.path.name + ".jsonl")
        self.lines = _followed(kept)
        self._done: dict[bytes, _Line] = {}
        self._outdated = False
        self._lock = WriterLock(self.lines)
        try:
            if resume and self.lines.exists():
                self._keep_good_lines()
            elif resume and self.path.exists():
                missing = f"{self.lines}: is missing, from which {self.path.name} is resumed"
                raise ConfigError(f"{missing}; put it back, or choose another --out")
            elif self.path.exists() or self.lines.exists():
                raise ConfigError(f"{path}: exists already; add to it with --resume, or choose another --out")
        except BaseException:
            self.close()
            raise

    def known(self, predictor: Predictor, image: Input, settings: Settings) -> Record | None:
        """Return the record of an image that was done as it is now, with these settings and this model."""
        if not self._done:
            return None
        head = predictor.head(image.path, settings, image.mpp)
        line = self._done.get(_question(head))
        if line is None or line.key != _digest(resume_key(head)):
            return None
        with self.lines.open("rb") as file:
            file.seek(line.start)
            record: Record = json.loads(file.readline())
        return record

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns."""
        self._outdated |= _question(record) in self._done
        append_line(self.lines, json.dumps(record))

    def finish(self) -> None:
        """Leave out what was replaced because an image had changed, and make the table that was asked for."""
        if self._outdated:
            self._keep_good_lines(failed=True)
        if self._format == ".csv":
            write_csv(self._records, self.path)
        elif self._format == ".parquet":
            write_parquet(self._records, self.path)

    def close(self) -> None:
        """Let others write to the file."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _records(self) -> Iterator[Record]:
        if self.lines.exists():
            with self.lines.open("rb") as file:
                yield from map(json.loads, file)

    def _keep_good_lines(self, failed: bool = False) -> None:
        """Rewrite the file with the last record of each image and settings, without a torn last line.

        Failures are left out, as they are tried again, unless ``failed``. Line by line: the file may be large.
        """
        last: dict[bytes, _Line] = {}
        for line, record in self._checked_lines():
            if record["status"] == "ok" or failed:
                last[_question(record)] = line
        self._done = {}
        with written_whole(self.lines) as beside, beside.open("wb") as new, self.lines.open("rb") as old:
            for question, line in last.items():
                old.seek(line.start)
                self._done[question] = _Line(new.tell(), line.key)
                new.write(old.readline())
        self._outdated = False

    def _checked_lines(self) -> Iterator[tuple[_Line, Record]]:
        start = 0
        with self.lines.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    # Torn, or zeros where the power was lost; but a file of something else is not to be emptied.
                    if number == 1 and not text.startswith(b"{") and text.strip(b"\0"):
                        raise ConfigError(f"{self.lines}: is no result file of pyrtrav; choose another --out")
                    return
                try:
                    record = json.loads(text)
                    check(record, RESULT_SCHEMA, str(self.lines))
                except (ValueError, RecursionError, TreeError) as error:
                    raise ConfigError(self._damaged(number)) from error
                yield _Line(start, _digest(resume_key(record))), record
                start += len(text)

    def _damaged(self, number: int) -> str:
        if number == 1:
            return f"{self.lines}:1: is no result of pyrtrav; choose another --out"
        remove = f"sed -i.bak {number}d {shlex.quote(str(self.lines))}"
        return f"{self.lines}:{number}: is damaged; remove the line ({remove}) and go on with --resume"


def _followed(path: Path) -> Path:
    """Where a link leads: it is to stay one when the file is replaced, and its file has one lock."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def tree_path(folder: str | os.PathLike[str], record: Record) -> Path:
    """Where the tree of a result is saved.

    The image's name, as far as file systems take it, and enough of the hash of its resume key to keep equal names, and
    the same image looked at otherwise, apart.
    """
    stem = os.fsencode(record["image"])[:STEM_BYTES].decode("utf-8", "ignore")
    return Path(folder) / f"{stem}.{_digest(resume_key(record)).hex()[:12]}.tree.json"
