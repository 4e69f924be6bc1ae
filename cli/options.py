"""The LOOK options: the same for every command that looks at images."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "How to look"

Model = Annotated[
    Path | None,
    typer.Option(help="Model file (.safetensors); default: the small sample model.", rich_help_panel=_PANEL),
]
Select = Annotated[
    str | None,
    typer.Option(
        help="sample, threshold or topk; of gfnet all, sample, random or centre; default: what the model file says.",
        metavar="NAME",
        rich_help_panel=_PANEL,
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(help="Probability above which a cell is attended (0 to 1).", rich_help_panel=_PANEL),
]
K = Annotated[int | None, typer.Option("--k", help="Cells attended in each grid, with topk.", rich_help_panel=_PANEL)]
Budget = Annotated[
    int | None,
    typer.Option(help="Looks allowed for an image, the first glance included.", rich_help_panel=_PANEL),
]
Depth = Annotated[int | None, typer.Option(help="Greatest depth (0 is the glance alone).", rich_help_panel=_PANEL)]
Seed = Annotated[
    int, typer.Option(min=0, max=2**62, help="Seed of the draws of --select sample.", rich_help_panel=_PANEL)
]
StopAt = Annotated[
    float | None,
    typer.Option(
        help="Probability (0 to 1) of the likeliest class at which an image needs no deeper look.",
        metavar="CONFIDENCE",
        rich_help_panel=_PANEL,
    ),
]
MeanBudget = Annotated[
    str | None,
    typer.Option(
        help="Looks an image on average, or 40e6macs, or 200000bytes: confidences to stop at are fitted to it.",
        metavar="N",
        rich_help_panel=_PANEL,
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel, instead of what the file says.", rich_help_panel=_PANEL),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_PANEL)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
