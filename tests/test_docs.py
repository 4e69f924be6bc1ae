"""The pages' tables of options are complete and say the true defaults; their links lead somewhere."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from pyrtrav.cli.app import app
from pyrtrav.encoders import ENCODERS, find_encoder
from pyrtrav.explain.page import CHAIN_FIGURES, FIGURES
from pyrtrav.methods import METHODS
from pyrtrav.training.options import TrainingConfig
from tests.samples import REPOSITORY

DOCS = REPOSITORY / "docs"


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading!r}"
    return found[1]


def rows(text: str) -> dict[str, str]:
    """The options of a table and their defaults; a row may name several."""
    found: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*?) \|", text, re.MULTILINE):
        options = re.findall(r"`(\w+)`", names)
        values = defaults.split(", ") if len(options) > 1 else [defaults]
        for option, value in zip(options, values, strict=True):
            assert option not in found, f"{option} stands twice"
            found[option] = value
    return found


def shown(value: Any) -> str:
    """A default as the pages write it."""
    if isinstance(value, tuple):
        return ", ".join(map(shown, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def defaults_of(config: type[Any]) -> dict[str, str]:
    return {field.name: shown(field.default) for field in dataclasses.fields(config)}


def defaults_of_builder(build: Callable[..., Any]) -> dict[str, str]:
    return {name: shown(parameter.default) for name, parameter in inspect.signature(build).parameters.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_is_documented(method: str) -> None:
    page = section("topdown.md", "Options") if method == "topdown" else section("methods.md", f"`{method}`")
    assert rows(page) == defaults_of(METHODS[method].Config)


def test_every_option_of_training_is_documented() -> None:
    assert rows(section("training.md", "Training")) == defaults_of(TrainingConfig)


@pytest.mark.parametrize("encoder", [*ENCODERS, "hf:NAME"])
def test_every_option_of_an_encoder_is_documented(encoder: str) -> None:
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    headings = [line for line in re.findall(r"^### (.*)$", text, re.MULTILINE) if f"`{encoder}`" in line]
    assert len(headings) == 1
    assert rows(section("methods.md", headings[0])) == defaults_of_builder(find_encoder(encoder))


def test_examples_run() -> None:
    text = (DOCS / "encoders.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/encoders.md", "exec"), {})


def test_every_flag_of_train_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    flags = {flag for option in command.commands["train"].params for flag in option.opts if flag.startswith("--")}
    table = re.findall(r"^\| (`--.*?) \|", section("training.md", "Training"), re.MULTILINE)
    assert {flag for row in table for flag in re.findall(r"`(--[\w-]+)`", row)} == flags - {"--help"}


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_to_a_heading(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_every_flag_of_explain_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    flags = {flag for option in command.commands["explain"].params for flag in option.opts if flag.startswith("--")}
    shared = {flag for option in command.commands["classify"].params for flag in option.opts} - {"--out"}
    assert (
        set(re.findall(r"^\| `(--[\w-]+)` \|", section("explain.md", "Explanations"), re.MULTILINE)) == flags - shared
    )


def test_every_figure_of_a_look_is_documented() -> None:
    found = re.findall(r"^\| ([a-z ]+) \|", section("explain.md", "The figures of a look"), re.MULTILINE)
    assert set(found) - {"figure"} == {*FIGURES.values(), *CHAIN_FIGURES.values()} - {"look", "glimpse"}


def test_every_option_for_many_images_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    options = command.commands["classify"].params
    flags = {flag for option in options for flag in option.opts if flag.startswith("--")}
    looking = {"--model", "--select", "--tau", "--k", "--budget", "--depth", "--seed", "--mpp", "--device"}
    looking |= {"--stop-at", "--mean-budget"}
    table = re.findall(r"^\| `(--[\w-]+)", section("cohort.md", "Options"), re.MULTILINE)
    assert set(table) == flags - looking - {"--json", "--quiet", "--help"}


def test_every_option_of_robustness_is_documented() -> None:
    command: Any = typer.main.get_command(app)
    options = command.commands["evaluate"].params
    own = {option.opts[0] for option in options if "Robustness" in (getattr(option, "rich_help_panel", None) or "")}
    assert set(re.findall(r"^\| `(--[\w-]+)` \|", section("robustness.md", "Robustness"), re.MULTILINE)) == own
