"""The program ``pyrtrav``: its commands, and how it fails.

Exit codes: 0 all done; 1 some images failed, the rest are done and each failure is named; 2 wrong usage.
"""

import io
import sys
import traceback
import warnings
from typing import Annotated

import typer
from rich.markup import escape

from pyrtrav import __version__
from pyrtrav.cli import classify, convert, doctor, evaluate, explain, info, train
from pyrtrav.cli.render import show_log, stderr, warn
from pyrtrav.errors import PyramidError, PyrtravError
from pyrtrav.stopping import Stopped

app = typer.Typer(
    name="pyrtrav",
    help="Classify whole-slide and satellite images by looking only where it matters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of all commands stand before the command's name."""


for command in (
    info.info,
    classify.classify,
    train.train,
    explain.explain,
    evaluate.evaluate,
    convert.convert,
    doctor.doctor,
):
    app.command()(command)


def main() -> None:
    """Run the program; an error becomes one message and an exit code."""
    debug = "--debug" in sys.argv[1:]
    # What Pillow thinks of odd tags is no concern of the user's: what cannot be read is an error of ours.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    show_log(quiet=not {"--quiet", "-q"}.isdisjoint(sys.argv[1:]))
    # A file name need not be text; it is printed all the same.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BrokenPipeError:
        # The reader of our output left, as in `pyrtrav classify ... | head`.
        sys.stderr.close()
        sys.exit(0)
    except Stopped as stopped:
        warn(f"stopped by {stopped}: what was not finished is not kept")
        sys.exit(stopped.exit_code)
    except PyrtravError as error:
        _fail(str(error), debug)
        sys.exit(1 if isinstance(error, PyramidError) else 2)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a traceback helps no user
        _fail(f"{type(error).__name__}: {error} (a fault of pyrtrav; `pyrtrav --debug ...` shows where)", debug)
        sys.exit(1)


def _fail(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    # Square brackets in file names are no markup.
    stderr.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)


__all__ = ["app", "main"]
