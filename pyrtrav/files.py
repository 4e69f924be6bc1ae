"""Writing so that a crash leaves the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyrtrav.errors import ConfigError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used quota, a file as large as may be."""


def _open_to_others(path: Path, bits: int) -> None:
    """What is made under a temporary name is private; results have the permissions of anything new."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(bits & ~umask)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it takes the path's place when the block ends without an error.

    Raises:
        ConfigError: the folder is missing or cannot be written to, or the disk is full.
    """
    target = Path(path)
    # Unlike Path's this says no of a name that is too long.
    if os.path.isdir(target):
        raise ConfigError(f"{target}: is a folder; name a file in it")
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        _open_to_others(beside, 0o666)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        if error.errno in _FULL:
            raise ConfigError(f"{target}: cannot be written: {error.strerror}; make room, and do it again") from error
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it takes that name when the block ends without an error.

    Raises:
        ConfigError: something has the name already, or the folder above is missing or cannot be written to.
    """
    target = Path(path)
    if target.exists():
        raise ConfigError(f"{target}: exists already; remove it, or choose another name")
    try:
        beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix))
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written: {error.strerror or error}") from error
    try:
        yield beside
        _open_to_others(beside, 0o777)
        os.rename(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_torn(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed left half written beside ``path``; none may be writing to it now."""
    target = Path(path)
    # The names that are made above, and those that begin with them; not those of lock files.
    name, suffix = glob.escape(target.name), glob.escape(target.suffix)
    for torn in target.parent.glob(f".{name}.{'[a-z0-9_]' * 8}{suffix}*"):
        if torn.is_dir():
            shutil.rmtree(torn, ignore_errors=True)
        else:
            torn.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and those above it where they are missing.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used as a folder: {error.strerror or error}") from error
    return folder


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line and wait until it is on the disk: a line is whole or absent, but for a torn last one.

    Raises:
        ConfigError: it cannot be written, as on a full disk.
    """
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        first = "make room" if error.errno in _FULL else "see to it"
        reason = error.strerror or error
        raise ConfigError(f"{path}: cannot be added to: {reason}; {first}, and go on with --resume") from error
