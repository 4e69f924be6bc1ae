"""Where models run."""

import torch

from pyrtrav.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        # Of a kind of device that it was not built for torch says only which of its parts are missing.
        unknown = isinstance(error, NotImplementedError | ImportError)
        reason = "this machine, or this build of torch, has none" if unknown else str(error).split("\n")[0]
        raise ConfigError(f"device {name!r} cannot be used: {reason}; usable are: {', '.join(_devices())}") from error
    return device


def _devices() -> list[str]:
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
