"""The command line: parse, call one function, render. No logic lives here."""

from pyrtrav.cli.app import main

__all__ = ["main"]
