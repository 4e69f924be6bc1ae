"""The explanation: what was looked at, as plain data that outlives the program.

A parse tree holds the result record of a classification and a node for every fixation. The schemas of both formats
ship with the package (``pyrtrav/schemas``); whatever is read back is checked against them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from pyrtrav.errors import TreeError
from pyrtrav.files import written_whole
from pyrtrav.geometry import Region

RESULT_SCHEMA = "pyrtrav.result/1"
TREE_SCHEMA = "pyrtrav.tree/1"
EVALUATION_SCHEMA = "pyrtrav.evaluation/1"
ROBUSTNESS_SCHEMA = "pyrtrav.robustness/1"
GEOJSON_SCHEMA = "pyrtrav.geojson/1"

Record = dict[str, Any]
"""A result record: see ``schemas/result.schema.json``."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One candidate of a fixation's grid."""

    column: int
    row: int
    probability: float
    node: int | None
    """The node that looked there because this edge was on; None where it was not."""


@dataclass(frozen=True, slots=True)
class Node:
    """One fixation."""

    id: int
    parents: tuple[int, ...]
    """Every node whose grid holds this cell with its edge on; empty for the glance."""
    depth: int
    step: int
    region: Region
    downsample: float
    """Level-0 pixels a patch pixel."""
    score: float
    """The largest product of probabilities along a path from the glance; where there are no paths, the attention."""
    contribution: float | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ParseTree:
    """A result record with everything that was looked at."""

    record: Record
    width: int
    height: int
    mpp: float | None
    bounds: Region
    background: tuple[int, ...]
    nodes: tuple[Node, ...]

    @property
    def label(self) -> str:
        return str(self.record["prediction"]["label"])

    @property
    def probability(self) -> float:
        """Of the predicted class, 0..1."""
        return float(self.record["prediction"]["probabilities"][self.label])

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.record,
            "schema": TREE_SCHEMA,
            "size": {"width": self.width, "height": self.height},
            "mpp": self.mpp,
            "bounds": asdict(self.bounds),
            "background": list(self.background),
            "nodes": [_node_to_dict(node) for node in self.nodes],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "tree") -> ParseTree:
        """Return the tree that ``to_dict`` gave.

        Raises:
            TreeError: the data are no parse tree; names ``source`` and the first thing that is wrong.
        """
        check(data, TREE_SCHEMA, source)
        nodes = tuple(_node_from_dict(node) for node in data["nodes"])
        _check_links(nodes, source)
        if "occlusion" in data:
            _check_occlusion(data["occlusion"], len(nodes), source)
        record = {key: value for key, value in data.items() if key not in _TREE_ONLY}
        size = data["size"]
        return cls(
            {**record, "schema": RESULT_SCHEMA},
            size["width"],
            size["height"],
            data["mpp"],
            Region(**data["bounds"]),
            tuple(data["background"]),
            nodes,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tree as JSON, whole or not at all."""
        with written_whole(path) as beside:
            beside.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="ascii")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ParseTree:
        """Read a saved tree.

        Raises:
            TreeError: the file cannot be read or is no parse tree.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TreeError(f"{path}: cannot be read as a parse tree: {error}") from error
        return cls.from_dict(data, str(path))


_TREE_ONLY = {"size", "mpp", "bounds", "background", "nodes"}


def _node_to_dict(node: Node) -> dict[str, Any]:
    return {
        **{name: getattr(node, name) for name in ("id", "depth", "step", "downsample", "score", "contribution")},
        "parents": list(node.parents),
        "region": asdict(node.region),
        "cells": [asdict(cell) for cell in node.cells],
    }


def _node_from_dict(data: Mapping[str, Any]) -> Node:
    return Node(
        data["id"],
        tuple(data["parents"]),
        data["depth"],
        data["step"],
        Region(**data["region"]),
        data["downsample"],
        data["score"],
        data["contribution"],
        tuple(Cell(**cell) for cell in data["cells"]),
    )


def _check_links(nodes: tuple[Node, ...], source: str) -> None:
    """Nodes are numbered in order, and parents and cells point at each other."""
    if any(node.id != i for i, node in enumerate(nodes)):
        raise TreeError(f"{source}: node ids must count from 0")
    edges = {(node.id, cell.node) for node in nodes for cell in node.cells if cell.node is not None}
    if any(not 0 <= child < len(nodes) for _, child in edges):
        raise TreeError(f"{source}: a cell names a node that is not there")
    for node in nodes:
        if any(not 0 <= parent < node.id for parent in node.parents):
            raise TreeError(f"{source}: node {node.id} names a parent that does not come before it")
        with_cells = [parent for parent in node.parents if nodes[parent].cells]
        if any((parent, node.id) not in edges for parent in with_cells):
            raise TreeError(f"{source}: node {node.id} names a parent whose cells do not name it")


def _check_occlusion(occlusion: Mapping[str, Any], nodes: int, source: str) -> None:
    """Every look has a number for each of its squares."""
    side, looks = occlusion["squares"], occlusion["looks"]
    if len(looks) != nodes:
        raise TreeError(f"{source}: an occlusion of {len(looks)} looks, where there are {nodes}")
    for number, look in enumerate(looks):
        numbers = [value for row in look for value in row]
        if [len(row) for row in look] != [side] * side or not all(map(math.isfinite, numbers)):
            raise TreeError(f"{source}: the occlusion of look {number} is not {side} x {side} numbers")


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a format, such as ``pyrtrav.result/1``."""
    file = name.removeprefix("pyrtrav.").partition("/")[0] + ".schema.json"
    schema: dict[str, Any] = json.loads(files("pyrtrav").joinpath("schemas", file).read_text(encoding="utf-8"))
    return schema


def check(data: Any, name: str, source: str) -> None:
    """Raise TreeError where the data do not follow the schema; the message names the place."""
    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(data))
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the whole"
        raise TreeError(f"{source}: not a {name} file: at {place}: {error.message[:300]}")


@cache
def _validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(load_schema(name))
