"""A model on changed pictures: clean accuracy, by corruption and severity, and under attack, as plain data.

The report (``pyrtrav.robustness/1``, see ``schemas``) is of images in memory: whole, or copies of a stated size. Clean
accuracy is that of the same copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrtrav import __version__
from pyrtrav.errors import ConfigError, PyrtravError
from pyrtrav.predict import IMAGES_AT_ONCE, Predictor
from pyrtrav.robustness.attack import Attack, as_bytes, attacked
from pyrtrav.robustness.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, corrupt
from pyrtrav.robustness.judge import Loaded, load, logits_of, working_size
from pyrtrav.selection import Settings
from pyrtrav.training.data import Example
from pyrtrav.training.held_out import HeldOut
from pyrtrav.training.report import described_data, described_model
from pyrtrav.tree import ROBUSTNESS_SCHEMA

Report = dict[str, Any]
"""See ``schemas/robustness.schema.json``."""

Key = tuple[Any, ...]
"""Names a way of changing pictures."""

CLEAN: Key = ("clean",)


@dataclass(frozen=True)
class Plan:
    """In which ways pictures are changed."""

    corruptions: bool = False
    """By the 15 corruptions, 5 severities each."""
    attack: Attack | None = None
    side: int | None = None
    """Longer side in pixels of the copies that larger images are judged by; None takes images whole."""
    seed: int = 0
    """Of the corruptions' draws."""

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise ConfigError(f"--side must be 1 or more, got {self.side}")

    @property
    def keys(self) -> list[Key]:
        """All ways, as they come of an image."""
        found = [CLEAN]
        if self.corruptions:
            found += [("corruption", name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
        if self.attack is not None:
            ways = ("bytes", "values") if self.attack.normalised else ("bytes",)
            found += [
                ("attack", eps, steps, way) for eps in self.attack.eps for steps in self.attack.steps for way in ways
            ]
        return found


@dataclass
class Tally:
    """Which images were classified rightly, by the way in which they were changed; failed ones never."""

    right: dict[Key, NDArray[np.bool_]]
    failed: dict[int, PyrtravError] = field(default_factory=dict)
    reduced: int = 0
    """Images of which a copy was judged."""

    def accuracy(self, key: Key) -> float:
        return float(self.right[key].mean())


def evaluate_robustness(
    predictor: Predictor,
    held_out: HeldOut,
    look: Mapping[str, Any],
    plan: Plan,
    *,
    mpp: float | None = None,
    command: str | None = None,
    watch: Callable[[int], None] | None = None,
) -> Report:
    """Judge a model on held-out images that are changed as planned.

    Args:
        look: the options of ``Predictor.settings``.
        watch: told how many more images are done, in every way.

    Raises:
        ConfigError: options that the method does not have, or an image that is too large to be taken whole.
    """
    settings = predictor.settings(**look)
    tally = judge(predictor, held_out.examples, settings, plan, mpp=mpp, watch=watch)
    return {
        "schema": ROBUSTNESS_SCHEMA,
        "version": __version__,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {**described_data(predictor, held_out), "side": plan.side, "reduced": tally.reduced},
        **described_model(predictor, settings, mpp),
        "clean": tally.accuracy(CLEAN),
        "corruptions": _corruption_figures(tally, plan) if plan.corruptions else None,
        "attack": None if plan.attack is None else _attack_figures(tally, plan.attack),
        "failures": [
            {"path": held_out.examples[number].path, "type": type(error).__name__, "message": str(error)}
            for number, error in sorted(tally.failed.items())
        ],
    }


def judge(
    predictor: Predictor,
    examples: Sequence[Example],
    settings: Settings,
    plan: Plan,
    *,
    mpp: float | None = None,
    watch: Callable[[int], None] | None = None,
) -> Tally:
    """Classify every image in every way, a few images at a time."""
    tally = Tally({key: np.zeros(len(examples), bool) for key in plan.keys})
    _check_sizes(predictor, examples, plan, mpp)
    for start in range(0, len(examples), IMAGES_AT_ONCE):
        numbers, loaded = [], []
        for number in range(start, min(start + IMAGES_AT_ONCE, len(examples))):
            try:
                loaded.append(load(predictor, examples[number].path, plan.side, mpp))
                numbers.append(number)
            except ConfigError:
                raise  # what is wrong is no image
            except PyrtravError as error:
                tally.failed[number] = error
        tally.reduced += sum(image.reduced for image in loaded)
        if loaded:
            labels = torch.tensor([examples[number].label for number in numbers])
            batch = Batch(predictor, settings, loaded, numbers, labels)
            for key, logits in batch.all_ways(plan):
                tally.right[key][numbers] = (logits.argmax(1) == labels).numpy()
        if watch is not None:
            watch(min(IMAGES_AT_ONCE, len(examples) - start))
    return tally


def _check_sizes(predictor: Predictor, examples: Sequence[Example], plan: Plan, mpp: float | None) -> None:
    """Refuse what is too large before hours are spent on the others."""
    for example in examples if plan.side is None else ():
        try:
            with predictor.open(example.path, mpp=mpp) as image:
                working_size(image, None)
        except ConfigError:
            raise
        except PyrtravError:
            continue  # said when it is its turn


@dataclass(frozen=True)
class Batch:
    """Some images in memory, changed in many ways and classified together."""

    predictor: Predictor
    settings: Settings
    loaded: Sequence[Loaded]
    numbers: Sequence[int]
    """Their places in the list: part of the seeds."""
    labels: torch.Tensor

    def all_ways(self, plan: Plan) -> Iterator[tuple[Key, torch.Tensor]]:
        """Yield logits (image, class) for every way of a plan, in its order."""
        yield CLEAN, self._of_bytes([image.pixels for image in self.loaded])
        for name in CORRUPTIONS if plan.corruptions else ():
            for severity in SEVERITIES:
                pictures = [
                    corrupt(image.pixels, name, severity, (plan.seed, number))
                    for image, number in zip(self.loaded, self.numbers, strict=True)
                ]
                yield ("corruption", name, severity), self._of_bytes(pictures)
        if plan.attack is not None:
            for eps in plan.attack.eps:
                yield from self._attacked(plan.attack, eps)

    def _attacked(self, attack: Attack, eps: float) -> Iterator[tuple[Key, torch.Tensor]]:
        model, device = self.predictor.model, self.predictor.device
        pictures = [image.tensor(device) for image in self.loaded]

        def believe(values: Sequence[torch.Tensor]) -> torch.Tensor:
            images = [
                image.tensor_image(value, rounded=not attack.normalised)
                for image, value in zip(self.loaded, values, strict=True)
            ]
            if attack.normalised:
                return logits_of(model, images, self.settings)
            with model.true_gradients():
                return logits_of(model, images, self.settings)

        std = model.encoder.std[0]
        for steps, found in attacked(believe, pictures, self.labels.to(device), attack, eps, std):
            if attack.normalised:
                with torch.no_grad():
                    yield ("attack", eps, steps, "values"), believe(found).cpu()
                written = [values.round().clamp(0, 255).to(torch.uint8) for values in found]
            else:
                written = [as_bytes(values, picture, eps) for values, picture in zip(found, pictures, strict=True)]
            stored = [np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in written]
            yield ("attack", eps, steps, "bytes"), self._of_bytes(stored)

    def _of_bytes(self, pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """The ordinary path."""
        images = [image.image(picture) for image, picture in zip(self.loaded, pictures, strict=True)]
        with torch.inference_mode():
            return logits_of(self.predictor.model, images, self.settings).cpu()


def _corruption_figures(tally: Tally, plan: Plan) -> dict[str, Any]:
    found = {name: [tally.accuracy(("corruption", name, severity)) for severity in SEVERITIES] for name in CORRUPTIONS}
    every = np.array(list(found.values()))
    return {
        "seed": plan.seed,
        "mean": float(every.mean()),
        "by_severity": every.mean(0).tolist(),
        "by_corruption": [
            {
                "name": each.__name__,
                "group": group,
                "mean": float(np.mean(found[each.__name__])),
                "by_severity": found[each.__name__],
            }
            for group, members in GROUPS.items()
            for each in members
        ],
    }


def _attack_figures(tally: Tally, attack: Attack) -> dict[str, Any]:
    return {
        "name": attack.name,
        "step": None if attack.name == "fgsm" else attack.step,
        "points": [
            {
                "eps": eps,
                "steps": steps,
                "accuracy": tally.accuracy(("attack", eps, steps, "bytes")),
                "unrounded": tally.accuracy(("attack", eps, steps, "values")) if attack.normalised else None,
            }
            for eps in attack.eps
            for steps in attack.steps
        ],
    }
