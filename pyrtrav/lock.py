"""One process at a time writes a results file."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from pyrtrav.errors import ConfigError


class WriterLock:
    """Held while a file is written. It is the system's lock: that of a dead process is gone with it.

    It stands in a hidden file beside, which names who holds it and is removed when it is given back. Over NFS the
    server keeps such locks, and gives up a dead machine's when its lease ends; a file system without locks is refused:
    a file that is taken for a lock would outlive its process.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ConfigError: another process writes the file, or the folder cannot be written to.
        """
        self._path = path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self._path, timeout=0, fallback_to_soft=False)
        try:
            self._acquire()
        except Timeout:
            raise ConfigError(f"{path}: {self._holder()} is writing to it; wait, or choose another --out") from None
        except OSError as error:
            if error.errno == errno.ENOSYS:  # there are no locks, so nobody holds the file that was opened for one
                self._path.unlink(missing_ok=True)
            raise ConfigError(
                f"{path}: cannot be locked ({error.strerror}); choose an --out that can be written to"
            ) from error
        self._path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")

    def _acquire(self) -> None:
        self._lock.acquire()
        # Whoever held it may have removed the file that we have just opened.
        while not self._path.exists():
            self._lock.release()
            self._lock.acquire()

    def _holder(self) -> str:
        try:
            return self._path.read_text("utf-8", errors="replace") or "another process"
        except OSError:
            return "another process"

    def release(self) -> None:
        if self._lock.is_locked:
            self._path.unlink(missing_ok=True)
            self._lock.release()
