"""What a result record says of an image that was looked at, part by part."""

from collections.abc import Sequence
from typing import Any

from pyrtrav.errors import PyrtravError
from pyrtrav.geometry import root_region
from pyrtrav.pyramid import Pyramid


def beliefs_of(classes: Sequence[str], levels: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return ``prediction`` and ``levels``.

    Args:
        levels: the probabilities of the classes after each depth; the last is what counts.
    """
    by_depth = []
    for depth, probabilities in enumerate(levels):
        index = max(range(len(classes)), key=lambda c: probabilities[c])
        named = dict(zip(classes, probabilities, strict=True))
        by_depth.append({"depth": depth, "label": classes[index], "probabilities": named})
    final = by_depth[-1]
    label = final["label"]
    prediction = {"label": label, "index": classes.index(label), "probabilities": final["probabilities"]}
    return {"prediction": prediction, "levels": by_depth}


def warnings_of(image: Pyramid, base_resolution: int, *, needs_mpp: bool, too_early: bool) -> list[str]:
    """Return what a user should know before believing the answer.

    Args:
        needs_mpp: whether the model goes by micrometres.
        too_early: whether the image left after a depth whose answers were not trained.
    """
    warnings = []
    if too_early:
        warnings.append(
            "left early, but the model was trained for its last depth alone, so that earlier answers mean little; "
            "train one with multi_level=true"
        )
    root = root_region(image.bounds, base_resolution)
    if min(image.bounds.width, image.bounds.height) * base_resolution < root.width:
        warnings.append(
            f"the image is so narrow ({image.width} x {image.height}) that the glance shows less than a pixel of it"
        )
    if image.mpp is None and (needs_mpp or image.said_mpp):
        said = f" (the file says {image.said_mpp} um)" if image.said_mpp else ""
        so = "so it is followed down to level 0; give --mpp" if needs_mpp else "and this model needs none"
        warnings.append(f"the image has no usable mpp{said}, {so}")
    return warnings


def described_error(error: PyrtravError) -> dict[str, str]:
    """Return ``error`` of a record whose image could not be classified."""
    return {"type": type(error).__name__, "message": str(error)}
