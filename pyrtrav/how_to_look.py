"""From a model's stored selection, and what a user asks for instead, to the settings of a run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pyrtrav.errors import ConfigError
from pyrtrav.exits import fitted, parse_mean_budget
from pyrtrav.methods import find_method
from pyrtrav.model_file import ModelCard
from pyrtrav.selection import NOT_BY_DEPTH, SELECTS, Settings

_NEEDS = {
    "select": "select",
    "tau": "select",
    "k": "select",
    "budget": "budget",
    "depth": "cells",
    "stop_at": "exit",
    "mean_budget": "exit",
}
"""What a method must support for an option to mean something."""


class Choice(NamedTuple):
    """What a user asks for; None leaves it to the model."""

    select: str | None = None
    tau: float | None = None
    k: int | None = None
    budget: int | None = None
    depth: int | None = None
    stop_at: float | None = None
    mean_budget: str | None = None


def settings_for(card: ModelCard, asked: Choice, *, seed: int = 0, **others: Any) -> Settings:
    """Return how to look; ``others`` are further fields of the settings.

    Raises:
        ConfigError: an option that is impossible, or that the method does not have.
    """
    _check_supported(card, asked)
    stored: Mapping[str, Any] = card.selection
    select, k, budget = asked.select, asked.k, asked.budget
    if select is None:
        implied = "threshold" if asked.tau is not None else "topk" if k is not None else None
        select = implied or ("budget" if budget is not None else stored.get("select", "all"))
        if implied is None and budget is None:
            budget, k = stored.get("budget"), stored.get("k")
    for option, value, needs in (("tau", asked.tau, "threshold"), ("k", k, "topk")):
        if value is not None and select != needs:
            raise ConfigError(f"--{option} goes with the selection `{needs}`, not with `{select}`")
    taus = (asked.tau,) if asked.tau is not None else stored.get("tau")
    settings = Settings(
        select=select,  # type: ignore[arg-type]
        tau=tuple(taus) if taus and select == "threshold" else None,
        k=k,
        budget=budget,
        depth=card.max_depth if asked.depth is None else asked.depth,
        share_cells=card.config.get("share_cells", True),
        seed=seed,
        **others,
    )
    return _with_exits(card, settings, asked.stop_at, asked.mean_budget)


def goes_by_depth(card: ModelCard, settings: Settings) -> bool:
    """Whether images can leave after a depth: the rounds of a selection under a budget are no depths."""
    method = find_method(card.method)
    # Methods that choose cells take a budget in rounds; of a chain it is the number of looks.
    in_rounds = settings.budget is not None and "select" in method.supports and "threshold" in method.selects
    return "exit" in method.supports and not in_rounds


def _with_exits(card: ModelCard, settings: Settings, stop_at: float | None, mean_budget: str | None) -> Settings:
    if stop_at is None and mean_budget is None:
        return settings
    if stop_at is not None and mean_budget is not None:
        raise ConfigError("--stop-at gives the confidence that --mean-budget would find; leave one of them out")
    if not goes_by_depth(card, settings):
        raise ConfigError(NOT_BY_DEPTH)
    if stop_at is not None and not 0 <= stop_at <= 1:
        raise ConfigError(f"--stop-at must lie between 0 and 1, got {stop_at}")
    if stop_at is not None:
        return replace(settings, stop_at=(stop_at,))
    if settings.depth == 0:
        raise ConfigError("--mean-budget needs depths to leave after, and this run is the first look alone")
    assert mean_budget is not None
    return replace(settings, stop_at=fitted(card.exits, settings, parse_mean_budget(mean_budget)))


def _check_supported(card: ModelCard, asked: Choice) -> None:
    method = find_method(card.method)
    for option, value in asked._asdict().items():
        selection = {"tau": "threshold", "k": "topk"}.get(option, method.selects[0])
        if value is not None and (_NEEDS[option] not in method.supports or selection not in method.selects):
            raise ConfigError(f"method {method.name!r} has no option --{option.replace('_', '-')}")
    if asked.select in set(SELECTS) - set(method.selects):
        raise ConfigError(
            f"method {method.name!r} has no selection `{asked.select}`; it has: {', '.join(method.selects)}"
        )
