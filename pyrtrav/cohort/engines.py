"""Every engine by the name that ``--engine`` takes."""

from __future__ import annotations

from pyrtrav.cohort.cluster import RayEngine
from pyrtrav.cohort.engine import Engine, LocalEngine
from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.predict import Predictor
from pyrtrav.selection import Settings

ENGINES = ("local", "ray")


def make_engine(
    name: str,
    predictor: Predictor,
    settings: Settings,
    *,
    contributions: bool = False,
    device: str = "auto",
    address: str | None = None,
    workers: int | None = None,
) -> Engine:
    """Return who classifies.

    Args:
        predictor: whose model it is.
        contributions: whether trees say what each look added.
        device: of Ray's workers; this process's is the predictor's.
        address: of a running Ray cluster.
        workers: of Ray.

    Raises:
        ConfigError: an unknown engine, options of another one, or the extra ``ray`` is missing.
    """
    if name not in ENGINES:
        raise ConfigError(f"unknown engine {name!r}{nearest_name(name, ENGINES)}")
    if name == "ray":
        return RayEngine(
            predictor, settings, contributions=contributions, device=device, address=address, workers=workers
        )
    if address is not None or workers is not None:
        raise ConfigError("--address and --workers go with --engine ray")
    return LocalEngine(predictor, settings, contributions=contributions)
