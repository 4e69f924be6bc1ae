"""The command line, run in this process."""

import sys
from typing import NamedTuple

import pytest

from pyrtrav.cli import main


class Done(NamedTuple):
    """How the program ended, and what it printed."""

    code: int
    out: str
    err: str


def run_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> Done:
    """Run ``pyrtrav`` with these words; it may not print a traceback."""
    monkeypatch.setattr(sys, "argv", ["pyrtrav", *map(str, words)])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return Done(code, out, err)
