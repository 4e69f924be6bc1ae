"""obstore: how it is connected, its process, and what it says in plain words."""

from __future__ import annotations

import importlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Lock
from typing import Any

from pyrtrav.errors import ConfigError, PyramidError

SCHEMES = ("https", "http", "s3", "gs")
"""What a URL may begin with."""

TRIES = 3
"""Times that a request is made before it is given up."""

_CONNECTIONS = 16


class NoRangesError(OSError):
    """The server sends whole files only."""


def timeout_seconds() -> float:
    """``PYRTRAV_TIMEOUT_SECONDS``, else 30: how long a server may be silent."""
    said = os.environ.get("PYRTRAV_TIMEOUT_SECONDS", "30")
    try:
        seconds = float(said)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 86_400:
        raise ConfigError(f"PYRTRAV_TIMEOUT_SECONDS is a number of seconds above 0, got {said!r}")
    return seconds


def connect(url: str) -> Any:
    """Return obstore's store for what lies at and below a URL; no request is made.

    Raises:
        PyramidError: a URL that is none, of an unknown kind, or the extra ``remote`` is missing.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise PyramidError(f"{url}: {scheme}:// is not read; known are {known} and paths of local files")
    try:
        stores = importlib.import_module("obstore.store")
    except ImportError as error:
        raise PyramidError(f"{url}: reading URLs needs the extra `remote`: pip install 'pyrtrav[remote]'") from error
    seconds = timeout_seconds()
    silence = timedelta(seconds=seconds)
    allow_http = scheme == "http" or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
    options = {
        "connect_timeout": silence,
        "read_timeout": silence,
        "timeout": 4 * silence,
        "allow_http": allow_http,
    }
    retry = {"max_retries": TRIES - 1, "retry_timeout": silence}
    try:
        # Files of the web are read as such, though the host be that of a store that wants signatures.
        connect = stores.HTTPStore.from_url if scheme in ("http", "https") else stores.from_url
        return connect(url, client_options=options, retry_config=retry)
    except Exception as error:
        raise PyramidError(f"{url}: {_first_line(error)}") from error


def fetched(store: Any, key: str, options: dict[str, Any]) -> Any:
    """Ask for a range; the answer's body is still to come."""
    return importlib.import_module("obstore").get(store, key, options=options)


_POOL: ThreadPoolExecutor | None = None
_PID: int | None = None
_LOCK = Lock()


def begin(url: str) -> None:
    """Before every use of obstore: its threads stay behind in a fork, and whoever asked them would wait forever."""
    global _PID
    if _PID is None:
        _PID = os.getpid()
    elif os.getpid() != _PID:
        raise PyramidError(
            f"{url}: a forked process cannot read URLs after its parent did; start it by 'spawn' or 'forkserver'"
        )


def fetch_pool() -> ThreadPoolExecutor:
    """The threads of this process that wait for answers."""
    global _POOL
    with _LOCK:
        if _POOL is None:
            _POOL = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="pyrtrav-fetch")
        return _POOL


_CREDENTIALS = "credentials are taken from the environment (AWS_SKIP_SIGNATURE=true for a public bucket)"
_TELLING: tuple[tuple[str, type[OSError], str], ...] = (
    ("non-partial response", NoRangesError, "the server does not answer range requests; download the file"),
    ("Range request not supported", NoRangesError, "the server does not answer range requests; download the file"),
    ("416 Range Not Satisfiable", OSError, "the file is empty"),
    ("dns error", ConnectionError, "its host is not known; check its name"),
    ("InvalidCertificate", ConnectionError, "the server's certificate is not trusted"),
    ("Connection refused", ConnectionError, "the server refuses the connection"),
    ("IncompleteBody", ConnectionError, f"the connection broke off in the middle of an answer, {TRIES} times"),
    ("builder error", PermissionError, "its endpoint is not https://; set AWS_ALLOW_HTTP=true if that is meant"),
    ("error sending request", ConnectionError, "the server cannot be reached, or answers nothing that is HTTP"),
    ("169.254.169.254", PermissionError, f"no credentials found; {_CREDENTIALS}"),
)
"""Parts of what obstore says, and the same in plain words."""


def plain_error(error: Exception) -> OSError:
    """Return what obstore says in a line, as one of Python's own errors."""
    text, kind = str(error), type(error).__name__
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError("no such file (404 Not Found)")
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return PermissionError(f"permission denied by the server; {_CREDENTIALS}")
    if "TimedOut" in text or "timed out" in text:
        return TimeoutError(
            f"the server was silent for {timeout_seconds():g} s; try again, or allow more by PYRTRAV_TIMEOUT_SECONDS"
        )
    for part, told, words in _TELLING:
        if part in text:
            return told(words)
    return OSError(_first_line(error))


def _first_line(error: Exception) -> str:
    """Without the request's URL, which may hold a signature."""
    line = (str(error).splitlines() or [""])[0]
    return line.rpartition(" - ")[2][:200] or type(error).__name__
