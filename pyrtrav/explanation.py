"""A tree to files: JSON and pictures, all of them or none. No torch: old trees redraw anywhere."""

from __future__ import annotations

import os
from pathlib import Path

from pyrtrav.errors import ConfigError
from pyrtrav.explain import draw_foveated, draw_overlay
from pyrtrav.explain.output import check_png, save_png
from pyrtrav.pyramid import open_pyramid
from pyrtrav.tree import ParseTree

Name = str | os.PathLike[str]


def check_targets(image: Name, out: Name | None, overlay: Name | None, foveated: Name | None) -> None:
    """Raise ConfigError before anything is looked at where a result could not be written, or would harm the image."""
    if out is not None and Path(out).suffix.lower() != ".json":
        raise ConfigError(f"{out}: a parse tree is written as JSON; give a name that ends in .json")
    for picture in (overlay, foveated):
        if picture is not None:
            check_png(picture)
    named = [Path(name).absolute() for name in (out, overlay, foveated) if name is not None]
    if len(set(named)) < len(named):
        raise ConfigError("two results would be written to the same file; give each its own name")
    for name in named:
        if not name.parent.is_dir():
            raise ConfigError(f"{name}: its folder does not exist; make it first")
        if name.is_dir():
            raise ConfigError(f"{name}: is a folder; name a file in it")
        source = Path(image).resolve()
        if source == name.resolve() or source in name.resolve().parents:
            raise ConfigError(f"{name}: would overwrite the image; choose another name with --out or --overlay")


def default_overlay(out: Name) -> Path:
    """Beside the tree, with its name."""
    return Path(out).with_suffix(".png")


def write(
    tree: ParseTree,
    *,
    out: Name | None = None,
    overlay: Name | None = None,
    foveated: Name | None = None,
    image: Name | None = None,
) -> dict[str, str]:
    """Draw and write a tree; returns what was written, by kind.

    Args:
        out: where the tree goes; None for a tree that is saved already.
        overlay: where the overlay goes; by default beside ``out``, with ``.png``.
        foveated: where the foveated picture goes; None for no such picture.
        image: the image; by default where the tree says that it was.

    Raises:
        ConfigError: a name that cannot be written.
        PyramidError: the image cannot be read; nothing is written then.
    """
    source = tree.record["input"]
    if overlay is None and out is not None:
        overlay = default_overlay(out)
    check_targets(image or source["path"], out, overlay, foveated)
    channels = source.get("chosen") or source.get("channels")
    window = tuple(source["window"]) if source.get("window") else None
    with open_pyramid(image or source["path"], mpp=tree.mpp, channels=channels, window=window) as pyramid:
        pictures = {
            "overlay": (overlay, draw_overlay(tree, pyramid) if overlay is not None else None),
            "foveated": (foveated, draw_foveated(tree, pyramid) if foveated is not None else None),
        }
    written: dict[str, str] = {}
    for kind, (name, picture) in pictures.items():
        if name is not None and picture is not None:
            save_png(picture, name, f"{tree.record['image']}: {tree.label}")
            written[kind] = os.fspath(name)
    if out is not None:
        # Last: a tree that is there has its pictures.
        tree.save(out)
        written["tree"] = os.fspath(out)
    return written
