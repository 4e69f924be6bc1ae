"""Image and model to result record and parse tree: one function behind classify, explain and evaluate."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from threading import Event
from typing import Any, NamedTuple

import torch

from pyrtrav import __version__
from pyrtrav.device import pick_device
from pyrtrav.errors import ConfigError, ModelFileError, PyrtravError
from pyrtrav.how_to_look import Choice, settings_for
from pyrtrav.ledger import DepthCost, cost_of, costs_by_depth, count_prefix, pixel_rule
from pyrtrav.model_file import LoadedModel, ModelCard, load_model
from pyrtrav.occlusion import check_coverable, sensitivities
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import forget_tiles
from pyrtrav.pyramid.costs import check_glance
from pyrtrav.pyramid.inspect import fingerprint
from pyrtrav.pyramid.open import check_isolate, check_mpp
from pyrtrav.pyramid.source import full_name, short_name
from pyrtrav.pyramid.time_limit import TimeLimit, check_seconds
from pyrtrav.record_parts import beliefs_of, described_error, warnings_of
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.tree import RESULT_SCHEMA, ParseTree, Record

IMAGES_AT_ONCE = 8
"""Images whose fixations share the encoder's batches. More are hardly faster, and fewer results are lost in a crash."""


class Input(NamedTuple):
    """An image to classify."""

    path: str
    """Or a URL."""
    mpp: float | None = None
    """Micrometres per level-0 pixel, where the file says nothing or something wrong."""


class Outcome(NamedTuple):
    """What became of one image: its record, and its tree where it was classified, or else the error."""

    record: Record
    tree: ParseTree | None
    error: PyrtravError | None = None


class Asked(NamedTuple):
    """How to look, and what to say of it."""

    settings: Settings
    costs: bool = False
    """What the looks down to each depth cost."""
    contributions: bool = False
    """What each look added to the prediction."""
    keep_tiles: bool = True
    """Decoded tiles stay in the cache."""
    squares: int = 0
    """Along each side of a look, for the occlusion of a single image; 0 for none."""


class _Opened(NamedTuple):
    """An image that is open, and where its result belongs."""

    number: int
    image: Pyramid
    head: Record
    """What its record says whatever becomes of it: of the file as it was when it was opened."""
    seconds: float
    """It took to open it."""


class Predictor:
    """A model that classifies images by looking only where it matters.

    >>> outcome = Predictor().predict(["slide.svs"])[0]
    >>> outcome.record["prediction"]["label"], outcome.tree.nodes
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | None = None,
        *,
        device: str = "auto",
        isolate: str = "never",
        max_seconds: float | None = None,
    ) -> None:
        """Load a model file; by default the small sample model.

        Args:
            device: ``auto`` takes a GPU where there is one.
            isolate: which images are decoded in a process of their own (see ``open_pyramid``).
            max_seconds: for opening and reading an image.

        Raises:
            ConfigError: one of these is impossible.
            ModelFileError: the file is no model.
        """
        check_seconds(max_seconds)
        check_isolate(isolate)
        self.loaded = model if isinstance(model, LoadedModel) else load_model(model)
        self.device = pick_device(device)
        self.model = self.loaded.model.to(self.device).eval()
        self.isolate, self.max_seconds = isolate, max_seconds
        self.device_type = self.device.type
        """What records say; other than ``device`` where others classify for this one."""
        self._stopped = Event()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Read nothing during the block: what is under way in other threads ends soon, and fails."""
        self._stopped.set()
        try:
            yield
        finally:
            self._stopped.clear()

    @property
    def card(self) -> ModelCard:
        """What the model file says of itself."""
        return self.loaded.card

    def settings(
        self,
        *,
        select: str | None = None,
        tau: float | None = None,
        k: int | None = None,
        budget: int | None = None,
        depth: int | None = None,
        seed: int = 0,
        stop_at: float | None = None,
        mean_budget: str | None = None,
        **others: Any,
    ) -> Settings:
        """Return how to look: the model's stored selection, and what is asked for here instead.

        A budget alone replaces the stored selection; beside ``select`` it caps it.

        Args:
            stop_at: probability (0..1) of the likeliest class at which an image leaves, after any depth.
            mean_budget: instead of it, what an image may cost on average (``6``, ``40e6macs``, ``200000bytes``): the
                confidences are fitted to it on the held-out images whose table the model file has.

        Raises:
            ConfigError: an option that is impossible, or that the method does not have.
        """
        asked = Choice(select, tau, k, budget, depth, stop_at, mean_budget)
        return settings_for(self.loaded.card, asked, seed=seed, **others)

    @property
    def name(self) -> str:
        """The model file's name and what the model is for."""
        purpose = self.loaded.card.purpose
        return os.path.basename(self.loaded.path) + (f", for {purpose}" if purpose else "")

    def open(self, path: str | os.PathLike[str], *, mpp: float | None = None) -> Pyramid:
        """Open an image with the channels and the window that the model wants."""
        card = self.loaded.card
        image = open_pyramid(
            path,
            mpp=mpp,
            channels=card.chosen or card.channels,
            window=card.window,
            isolate=self.isolate,
            limit=TimeLimit(self.max_seconds, self._stopped),
        )
        try:
            check_glance(image, self.model.encoder.base_resolution)
        except PyrtravError:
            image.close()
            raise
        return image

    def predict(
        self,
        paths: Sequence[str | os.PathLike[str]],
        settings: Settings | None = None,
        *,
        mpp: float | None = None,
        contributions: bool = False,
    ) -> list[Outcome]:
        """Classify images together: their fixations share the encoder's batches, their results do not depend on it.

        An image that cannot be opened or read has an error record and no tree; the others are done. With
        ``contributions`` the trees' nodes say what each added to the prediction, for about a tenth more time.

        Raises:
            ConfigError: an impossible option, or variable of the environment.
        """
        inputs = [Input(os.fspath(path), mpp) for path in paths]
        asked = Asked(settings or self.settings(), contributions=contributions)
        return [outcome for outcome, _ in self._predict(inputs, asked)]

    def predict_inputs(
        self, inputs: Sequence[Input], settings: Settings | None = None, *, contributions: bool = False
    ) -> list[Outcome]:
        """Do the same for images that have an mpp each, and of which no decoded tiles are kept: none comes again."""
        asked = Asked(settings or self.settings(), contributions=contributions, keep_tiles=False)
        return [outcome for outcome, _ in self._predict(inputs, asked)]

    def predict_with_costs(
        self,
        paths: Sequence[str | os.PathLike[str]],
        settings: Settings | None = None,
        *,
        mpp: float | None = None,
    ) -> list[tuple[Outcome, tuple[DepthCost, ...]]]:
        """Do the same, and return for each image what its looks down to each depth cost; nothing where it failed."""
        asked = Asked(settings or self.settings(), costs=True)
        return self._predict([Input(os.fspath(path), mpp) for path in paths], asked)

    def _predict(self, inputs: Sequence[Input], asked: Asked) -> list[tuple[Outcome, tuple[DepthCost, ...]]]:
        for mpp in {each.mpp for each in inputs}:
            check_mpp(mpp)
        outcomes: dict[int, tuple[Outcome, tuple[DepthCost, ...]]] = {}
        with ExitStack() as stack:
            opened: list[_Opened] = []
            for number, (path, mpp) in enumerate(inputs):
                begun = time.perf_counter()
                try:
                    image = stack.enter_context(self.open(path, mpp=mpp))
                except ConfigError:
                    raise  # what is wrong is no image
                except PyrtravError as error:
                    outcomes[number] = self.failed(inputs[number], asked.settings, error), ()
                else:
                    seconds = time.perf_counter() - begun
                    opened.append(_Opened(number, image, self.head(path, asked.settings, mpp), seconds))
            if opened:
                outcomes.update(self._predict_open(opened, asked))
            if not asked.keep_tiles:
                forget_tiles([each.image for each in opened])
        return [outcomes[number] for number in range(len(inputs))]

    def explain(
        self,
        path: str | os.PathLike[str],
        settings: Settings | None = None,
        *,
        mpp: float | None = None,
        squares: int = 0,
    ) -> ParseTree:
        """Return the parse tree of one image: the same run as ``predict``'s.

        Args:
            squares: along each side of a look; the tree's record then says under ``occlusion`` how much noise over each
                square changes the prediction (see ``occlusion``). 0: it does not.

        Raises:
            PyramidError: the image cannot be opened or read.
        """
        if squares:
            check_coverable(self.model)
        asked = Asked(settings or self.settings(), contributions=True, squares=squares)
        outcome, _ = self._predict([Input(os.fspath(path), mpp)], asked)[0]
        if outcome.tree is None:
            assert outcome.error is not None
            raise outcome.error
        return outcome.tree

    def _predict_open(
        self, opened: Sequence["_Opened"], asked: Asked
    ) -> dict[int, tuple[Outcome, tuple[DepthCost, ...]]]:
        images, settings = [each.image for each in opened], asked.settings
        begun = time.perf_counter()
        generators = [torch.Generator().manual_seed(settings.seed) for _ in images]
        with torch.inference_mode():
            trace = self.model.look(images, settings, generators)
            whole = [self.model.depth_of(image, settings) for image in images]
            depths = [depth if left < 0 else left for depth, left in zip(whole, trace.left.tolist(), strict=True)]
            levels = [
                torch.softmax(self.model.believe(trace, depth).double(), dim=1).cpu()
                for depth in range(max(depths) + 1)
            ]
            macs, encoded = self.model.macs(trace), self.model.pixels_encoded(trace)
        elapsed = time.perf_counter() - begun
        parts = [*(trace.until(z) for z in range(max(depths))), trace] if asked.costs else []
        prefixes = [count_prefix(self.model, part) for part in parts]
        outcomes: dict[int, tuple[Outcome, tuple[DepthCost, ...]]] = {}
        for i, (number, image, head, seconds) in enumerate(opened):
            beliefs = [level[i].tolist() for level in levels[: depths[i] + 1]]
            failed = trace.errors[i] or _changed(image) or self._overflow(image, beliefs)
            if failed is not None:
                outcomes[number] = _failed(head, failed), ()
                continue
            record = {
                **head,
                "status": "ok",
                **beliefs_of(self.loaded.card.classes, beliefs),
                "cost": cost_of(trace, i, image, macs[i], encoded[i], seconds, elapsed),
            }
            record["input"] |= pixel_rule(image)
            warnings = self._warnings(image, left_early=bool(trace.left[i] >= 0))
            if warnings:
                record["warnings"] = warnings
            tree = self._tree(trace, i, image, record, depths[i] if asked.contributions else None)
            if asked.squares:
                tree.record["occlusion"] = self._occlusion(trace, image, depths[i], record, asked)
            own = [*prefixes[: depths[i]], *prefixes[-1:]]
            by_depth = costs_by_depth(tree, image, trace, i, own) if asked.costs else ()
            outcomes[number] = Outcome(record, tree), by_depth
        return outcomes

    def _occlusion(self, trace: Trace, image: Pyramid, depth: int, record: Record, asked: Asked) -> dict[str, Any]:
        label, seed = record["prediction"]["index"], asked.settings.seed
        with torch.inference_mode():
            found = sensitivities(self.model, image, trace, depth, label, squares=asked.squares, seed=seed)
        return {"squares": asked.squares, "seed": seed, "looks": found.tolist()}

    def _overflow(self, image: Pyramid, beliefs: Sequence[Sequence[float]]) -> ModelFileError | None:
        """The error of an image for which weights, each of them finite, give no numbers."""
        if all(math.isfinite(value) for belief in beliefs for value in belief):
            return None
        return ModelFileError(
            f"{self.loaded.path}: its weights are so large that {image.path} gets no probabilities; train it again"
        )

    def head(self, path: str, settings: Settings, mpp: float | None) -> Record:
        """Return what a record of this image says before it is looked at."""
        absolute = full_name(path)
        try:
            mark = fingerprint(absolute)
        except (PyrtravError, OSError):
            mark = None
        return {
            "schema": RESULT_SCHEMA,
            "version": __version__,
            "image": short_name(absolute),
            "input": {"path": absolute, "fingerprint": mark},
            **self.described(settings, mpp),
        }

    def described(self, settings: Settings, mpp: float | None) -> dict[str, Any]:
        """Return the settings and the model as every record names them."""
        card = self.loaded.card
        # All settings but the one that changes no result: the resume key is made of them.
        return {
            "settings": {
                **{name: value for name, value in asdict(settings).items() if name not in ("encode_batch", "stop_at")},
                "tau": list(settings.tau) if settings.tau else None,
                # Absent where no image leaves early, so that results of before there was such an option are resumed.
                **({"stop_at": list(settings.stop_at)} if settings.stop_at else {}),
                "mpp": mpp,
                "device": self.device_type,
            },
            "model": {"method": card.method, "encoder": card.encoder.name, "sha256": self.loaded.sha256},
        }

    def failed(self, asked: Input, settings: Settings, error: PyrtravError) -> Outcome:
        """Return what becomes of an image that cannot be classified."""
        return _failed(self.head(asked.path, settings, asked.mpp), error)

    @property
    def trained_at_all_depths(self) -> bool:
        """Whether an answer after an early depth means something."""
        return getattr(getattr(self.model, "config", None), "multi_level", None) is not False

    def _warnings(self, image: Pyramid, *, left_early: bool) -> list[str]:
        too_early = left_early and not self.trained_at_all_depths
        needs_mpp = bool(self.loaded.card.config.get("finest_mpp"))
        return warnings_of(image, self.model.encoder.base_resolution, needs_mpp=needs_mpp, too_early=too_early)

    def _tree(self, trace: Trace, i: int, image: Pyramid, record: Record, depth: int | None) -> ParseTree:
        """The tree; with ``depth``, where the run stopped, it has contributions."""
        nodes = self.model.nodes(trace, i)
        if depth is not None:
            with torch.inference_mode():
                added = self.model.contributions(trace, i, depth, record["prediction"]["index"])
            nodes = tuple(replace(node, contribution=value) for node, value in zip(nodes, added, strict=True))
        return ParseTree(
            record,
            image.width,
            image.height,
            image.mpp,
            image.bounds,
            image.background,
            nodes,
        )


def _failed(head: Record, error: PyrtravError) -> Outcome:
    return Outcome({**head, "status": "error", "error": described_error(error)}, None, error)


def _changed(image: Pyramid) -> PyrtravError | None:
    """The error of an image whose file is no longer the one that was opened: its fingerprint would be another's."""
    try:
        image.check_unchanged()
    except PyrtravError as error:
        return error
    return None
