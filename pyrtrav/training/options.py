"""How any method is trained: the options of ``--set`` and of a TOML file's table ``training``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from pyrtrav.config import check_range
from pyrtrav.errors import ConfigError

N = TypeVar("N", int, float)

Keep = Literal["last", "accuracy", "balanced_accuracy", "auroc", "f1", "calibration_error", "loss"]

LOWER_IS_BETTER = frozenset({"loss", "calibration_error"})

ClassWeights = Literal["none", "balanced"] | tuple[float, ...]

NO_INFLUENCE = frozenset({"checkpoint_steps", "keep_vectors", "tensorboard"})
"""Options that change no weight: a run may be resumed with others."""


@dataclass(frozen=True)
class TrainingConfig:
    """How any method is trained."""

    epochs: int | tuple[int, ...] = 100
    """Epochs a stage; one value for all stages, or one each."""
    batch_size: int = 16
    """Images a step."""
    lr: float | tuple[float, ...] = 2e-3
    """Adam's step, one for all stages or one each; in each stage it drops to a fifth when 80 % of its epochs are done,
    and again at 90 % (the paper's schedule). It changes between epochs, never within one."""
    weight_decay: float = 0.0
    """Decoupled (AdamW), 0 or more."""
    clip: float = 5.0
    """Largest norm of the gradient, above 0; the policy has one of its own."""
    turn: bool = True
    """Show images in any of their eight turns and mirrorings."""
    mirror: bool = False
    """Swap left and right of half of the images; for images that have an up and a down (``turn`` includes it)."""
    shift: float = 0.0
    """Show each image smaller by up to this, anywhere in its frame, so that cells fall otherwise; 0 to 1."""
    jitter: float = 0.05
    """Colour: brightness, contrast, saturation and hue of each image vary by up to this; 0 to below 1."""
    hed: float = 0.0
    """Stains: amounts of haematoxylin, eosin and DAB in each image vary by up to this; 0 to below 1."""
    validate_every: int = 5
    """Epochs between validations; the last epoch of a stage is always validated."""
    keep: Keep = "last"
    """Which weights a stage ends with: the last, or those of the validation that was best by this metric."""
    patience: int = 0
    """Validations without a better one (by ``keep``; by loss for ``last``) after which a stage ends; 0 for never."""
    label_smoothing: float = 0.0
    """Share of each label's weight that goes to all classes alike; 0 to below 1."""
    class_weights: ClassWeights = "none"
    """``balanced``: every class counts alike; or numbers, one a class in the order of their names. Scaled to a mean
    of 1 over the training images."""
    accumulate: int = 1
    """Parts in which a step's images go through the model one after the other, to save memory; at most
    ``batch_size``."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder; the rest is always float32. ``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    recompute: bool = False
    """Compute the encoder's activations again for the backward pass instead of keeping them."""
    keep_vectors: int = 0
    """Megabytes for what a frozen encoder has made of places, so that later epochs need not read and encode them."""
    checkpoint_steps: int = 0
    """Steps between checkpoints within an epoch; 0 writes one after each epoch only."""
    tensorboard: bool = False
    """Write the log for TensorBoard too (extra ``tensorboard``)."""
    strict: bool = False
    """Stop at the first unreadable image."""

    def __post_init__(self) -> None:
        check_range(self, "epochs", "batch_size", "validate_every", "accumulate", least=1)
        check_range(self, "checkpoint_steps", "keep_vectors", "patience", least=0)
        # Beyond any sense, but torch can still count with it.
        check_range(self, "lr", above=0, most=1e12)
        check_range(self, "weight_decay", least=0, most=1e12)
        check_range(self, "clip", above=0)
        check_range(self, "jitter", "hed", "label_smoothing", least=0, below=1)
        check_range(self, "shift", least=0, most=1)
        if not isinstance(self.class_weights, str):
            check_range(self, "class_weights", above=0)
        for name in ("epochs", "lr"):
            if getattr(self, name) == ():
                raise ConfigError(f"{name} needs a number for each stage, or one for all; got none")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate must be at most batch_size, which it divides: {self.accumulate} parts of "
                f"{self.batch_size} images"
            )

    def epochs_of(self, stages: int) -> tuple[int, ...]:
        """Epochs of each stage."""
        return _of_each("epochs", self.epochs, stages)

    def lr_of(self, stages: int) -> tuple[float, ...]:
        """Adam's step in each stage."""
        return _of_each("lr", self.lr, stages)


def _of_each(name: str, value: N | tuple[N, ...], stages: int) -> tuple[N, ...]:
    """One value for all stages, or one each."""
    values = value if isinstance(value, tuple) else (value,) * stages
    if len(values) != stages:
        raise ConfigError(f"{name} has {len(values)} values for {stages} stages")
    return values
