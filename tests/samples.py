"""Where the samples of the repository are, and what of a record may differ between two runs."""

import copy
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
SAMPLES = REPOSITORY / "sample_data"
SLIDE = SAMPLES / "slide.svs"
IMAGES = [SLIDE, SAMPLES / "scene.ome.tif", SAMPLES / "scene.ome.zarr", SAMPLES / "scene.png"]
TISSUE = SAMPLES / "tissue"

MEASUREMENTS = ("tiles_decoded", "bytes_read", "requests", "bytes_fetched", "pixels_decoded", "seconds")


def compared(record: dict[str, Any], *, file_changed: bool = False) -> dict[str, Any]:
    """The record without its measurements."""
    kept = copy.deepcopy(record)
    for name in MEASUREMENTS:
        kept.get("cost", {}).pop(name, None)
    if file_changed:
        kept["input"].pop("fingerprint")
        kept["input"].pop("path")
    return kept
