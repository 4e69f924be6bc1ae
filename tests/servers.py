"""Servers on loopback: plain HTTP whose failings a test can choose, and a whole S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

S3_KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "of-slides", "AWS_REGION": "us-east-1"}


class FileServer(ThreadingHTTPServer):
    """Serves a folder, byte ranges and conditions included; attributes say what goes wrong."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.has_ranges = self.has_etags = self.has_dates = self.minds_conditions = True
        self.silent_seconds = 0.0
        self.to_break = 0
        """The next so many answers end in the middle."""
        self.on_break: Callable[[], object] = int
        """Called after an answer was broken off."""
        self.status: dict[str, int] = {}
        """By the end of a path."""
        self.fine = sys.maxsize
        """After so many requests every answer is 500."""
        self.asked: list[tuple[str, str | None]] = []
        """(path, Range) of every request."""
        self.sent_bytes = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may leave
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, unquote(urlsplit(self.path).path)
        server.asked.append((path, self.headers.get("Range")))
        time.sleep(server.silent_seconds)
        status = next((code for end, code in server.status.items() if path.endswith(end)), None)
        status = 500 if len(server.asked) > server.fine else status
        file = server.root / path.lstrip("/")
        if status is None and not file.is_file():
            status = 404
        if status is not None:
            self._answer(status, {}, b"")
            return
        found, data = file.stat(), file.read_bytes()
        headers = {}
        if server.has_etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}{found.st_mtime_ns}"'
        if server.has_dates:
            headers["Last-Modified"] = formatdate(found.st_mtime, usegmt=True)
        condition = self.headers.get("If-Match")
        if condition and server.minds_conditions and condition != headers.get("ETag"):
            self._answer(412, {}, b"")
            return
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")) if server.has_ranges else None
        if wanted is None:
            self._answer(200, headers, data)
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._answer(206, headers, data[start:stop])

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.to_break > 0 and len(body) > 1:
            self.server.to_break -= 1
            self.wfile.write(body[: len(body) // 2])
            self.server.on_break()
            self.close_connection = True
            return
        for start in range(0, len(body), 1 << 20):
            part = body[start : start + (1 << 20)]
            self.server.sent_bytes += len(part)
            self.wfile.write(part)


@contextmanager
def file_server(root: Path) -> Iterator[FileServer]:
    with FileServer(root) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Start SeaweedFS with its data in ``folder``; gives the address of its S3 service."""
    weed = shutil.which("weed", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))
    assert weed is not None
    credentials = {"accessKey": S3_KEYS["AWS_ACCESS_KEY_ID"], "secretKey": S3_KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "reader", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    services = ("master", "volume", "filer", "s3")
    names = [f"{name}.port{kind}" for name in services for kind in ("", ".grpc")]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    command = [
        weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder}/s3.json",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        process.kill()  # it takes half a minute to stop, and nothing of it is kept
        process.wait()
