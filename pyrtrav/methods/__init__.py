"""The methods by name. Adding one is one file and one line here."""

from pyrtrav.errors import ConfigError, nearest_name
from pyrtrav.methods.base import Method, Model, Objective, Stage
from pyrtrav.methods.fcn import METHOD as FCN
from pyrtrav.methods.gfnet import METHOD as GFNET
from pyrtrav.methods.mgnet import METHOD as MGNET
from pyrtrav.methods.mil import METHOD as MIL
from pyrtrav.methods.topdown import METHOD as TOPDOWN

METHODS: dict[str, Method] = {method.name: method for method in (TOPDOWN, MGNET, GFNET, FCN, MIL)}


def find_method(name: str) -> Method:
    """Return the method; ConfigError with the nearest name where there is none."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}{nearest_name(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "Model", "Objective", "Stage", "find_method"]
