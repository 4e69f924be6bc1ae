"""The house rules: floors import downwards only, nothing hides in a function, and light commands stay light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "pyrtrav"

FLOORS = [
    ["allocator", "errors", "geometry", "cost", "files", "config", "lock", "stopping", "tables", "tree"],
    ["pyramid"],
    ["explain", "explanation", "formats", "doctor"],
    ["device", "ranks", "selection", "exits", "trace", "colours"],
    ["cells", "context", "draws", "glimpses", "rounds", "sampling", "tensor_image", "tiling"],
    ["encoders", "policy_gradient", "ppo"],
    ["traversal"],
    ["methods"],
    ["model_file", "how_to_look", "record_parts", "ledger", "occlusion", "predict"],
    ["training", "cohort", "robustness"],
    ["cli"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


LATE = {"pyrtrav.pyramid.kernels"}
"""May be imported in a function: it compiles, or loads what was compiled."""


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def own_imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyrtrav"):
            # `from pyrtrav import explanation` names a module in its names.
            found.extend([node.module] if "." in node.module else [f"pyrtrav.{a.name}" for a in node.names])
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names if alias.name.startswith("pyrtrav"))
    return [name for name in found if "__" not in name]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards_and_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = package_of(path)
    if own == "__init__":
        return  # its lazy names reach everywhere
    for name in own_imports(tree):
        other = name.split(".")[1]
        if other != own:
            assert FLOOR_OF[other] <= FLOOR_OF[own], f"{own} (floor {FLOOR_OF[own]}) imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            hidden = set(own_imports(ast.Module(node.body, []))) - LATE
            assert not hidden, f"{path.name}: {node.name} hides an import of ours"


def test_no_cycle_inside_a_package() -> None:
    graph = {}
    for path in modules():
        name = "pyrtrav." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        # A package's own __init__ gathers its modules; nothing inside may import it back.
        if path.name != "__init__.py":
            graph[name] = set(own_imports(ast.parse(path.read_text())))
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name in done or name not in graph or name == "pyrtrav":
            return
        for other in graph[name]:
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    "code",
    [
        "import pyrtrav",
        "import pyrtrav; pyrtrav.open_pyramid; pyrtrav.ParseTree",
        "import pyrtrav.explanation",
        "import pyrtrav.pyramid; assert 'numba' not in __import__('sys').modules",
        "import sys; sys.argv = ['pyrtrav', '--help']; from pyrtrav.cli.app import app; app(standalone_mode=False)",
    ],
)
def test_light_things_do_not_import_torch(code: str) -> None:
    check = f"{code}\nimport sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_folder_of_code_is_installed() -> None:
    """What an installation from a wheel would otherwise lack."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"pyrtrav.cli"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages
