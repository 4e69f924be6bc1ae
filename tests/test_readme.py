"""The README's commands work as they stand, and its reference names what the program has."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.samples import REPOSITORY, SAMPLES

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.*)$", README, re.MULTILINE)


def test_every_command_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyrtrav.cli import main

    (tmp_path / "sample_data").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        try:
            main()
        except SystemExit as left:
            assert left.code in (0, None), command
        assert capsys.readouterr().out, command


def test_the_python_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(code, {})


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (REPOSITORY / target).exists(), target
