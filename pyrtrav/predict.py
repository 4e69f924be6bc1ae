"""Image and model to result record and parse tree: one function behind classify, explain and evaluate."""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from threading import Event
from typing import Any, NamedTuple

import torch

from pyrtrav import __version__
from pyrtrav.errors import ConfigError, ModelFileError, PyrtravError
from pyrtrav.exits import fitted, parse_mean_budget
from pyrtrav.geometry import root_region
from pyrtrav.ledger import DepthCost, cost_of, costs_by_depth, count_prefix, pixel_rule
from pyrtrav.methods import find_method
from pyrtrav.model_file import LoadedModel, ModelCard, load_model
from pyrtrav.occlusion import check_coverable, sensitivities
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import forget_tiles
from pyrtrav.pyramid.costs import check_glance
from pyrtrav.pyramid.inspect import fingerprint
from pyrtrav.pyramid.open import check_isolate, check_mpp
from pyrtrav.pyramid.source import full_name, short_name
from pyrtrav.pyramid.time_limit import TimeLimit, check_seconds
from pyrtrav.selection import NOT_BY_DEPTH, SELECTS, Settings
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
        card = self.loaded.card
        asked_for = {"select": select, "tau": tau, "k": k, "budget": budget, "depth": depth}
        self._check_supported(**asked_for, stop_at=stop_at, mean_budget=mean_budget)
        stored: Mapping[str, Any] = card.selection
        if select is None:
            asked = "threshold" if tau is not None else "topk" if k is not None else None
            select = asked or ("budget" if budget is not None else stored.get("select", "all"))
            if asked is None and budget is None:
                budget, k = stored.get("budget"), stored.get("k")
        for option, value, needs in (("tau", tau, "threshold"), ("k", k, "topk")):
            if value is not None and select != needs:
                raise ConfigError(f"--{option} goes with the selection `{needs}`, not with `{select}`")
        taus = (tau,) if tau is not None else stored.get("tau")
        share = card.config.get("share_cells", True)
        settings = Settings(
            select=select,  # type: ignore[arg-type]
            tau=tuple(taus) if taus and select == "threshold" else None,
            k=k,
            budget=budget,
            depth=card.max_depth if depth is None else depth,
            share_cells=share,
            seed=seed,
            **others,
        )
        return self._with_exits(settings, stop_at, mean_budget)

    def _with_exits(self, settings: Settings, stop_at: float | None, mean_budget: str | None) -> Settings:
        if stop_at is None and mean_budget is None:
            return settings
        if stop_at is not None and mean_budget is not None:
            raise ConfigError("--stop-at gives the confidence that --mean-budget would find; leave one of them out")
        if not self.goes_by_depth(settings):
            raise ConfigError(NOT_BY_DEPTH)
        if stop_at is not None and not 0 <= stop_at <= 1:
            raise ConfigError(f"--stop-at must lie between 0 and 1, got {stop_at}")
        if stop_at is not None:
            return replace(settings, stop_at=(stop_at,))
        if settings.depth == 0:
            raise ConfigError("--mean-budget needs depths to leave after, and this run is the first look alone")
        assert mean_budget is not None
        budget = parse_mean_budget(mean_budget)
        return replace(settings, stop_at=fitted(self.loaded.card.exits, settings, budget))

    def goes_by_depth(self, settings: Settings) -> bool:
        """Whether images can leave after a depth: the rounds of a selection under a budget are no depths."""
        method = find_method(self.loaded.card.method)
        # Methods that choose cells take a budget in rounds; of a chain it is the number of looks.
        in_rounds = settings.budget is not None and "select" in method.supports and "threshold" in method.selects
        return "exit" in method.supports and not in_rounds

    def _check_supported(self, **asked: object) -> None:
        method = find_method(self.loaded.card.method)
        needs = {"select": "select", "tau": "select", "k": "select", "budget": "budget", "depth": "cells"}
        needs |= {"stop_at": "exit", "mean_budget": "exit"}
        for option, value in asked.items():
            selection = {"tau": "threshold", "k": "topk"}.get(option, method.selects[0])
            if value is not None and (needs[option] not in method.supports or selection not in method.selects):
                raise ConfigError(f"method {method.name!r} has no option --{option.replace('_', '-')}")
        if asked.get("select") in set(SELECTS) - set(method.selects):
            raise ConfigError(
                f"method {method.name!r} has no selection `{asked['select']}`; it has: {', '.join(method.selects)}"
            )

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
                **self._beliefs(beliefs),
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

    def _beliefs(self, levels: Sequence[Sequence[float]]) -> dict[str, Any]:
        classes = self.loaded.card.classes
        by_depth = []
        for depth, probabilities in enumerate(levels):
            index = max(range(len(classes)), key=lambda c: probabilities[c])
            named = dict(zip(classes, probabilities, strict=True))
            by_depth.append({"depth": depth, "label": classes[index], "probabilities": named})
        final = by_depth[-1]
        label = final["label"]
        prediction = {"label": label, "index": classes.index(label), "probabilities": final["probabilities"]}
        return {"prediction": prediction, "levels": by_depth}

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
        warnings = []
        if left_early and not self.trained_at_all_depths:
            warnings.append(
                "left early, but the model was trained for its last depth alone, so that earlier answers mean little; "
                "train one with multi_level=true"
            )
        base = self.model.encoder.base_resolution
        root = root_region(image.bounds, base)
        if min(image.bounds.width, image.bounds.height) * base < root.width:
            warnings.append(
                f"the image is so narrow ({image.width} x {image.height}) that the glance shows less than a pixel of it"
            )
        needs_mpp = self.loaded.card.config.get("finest_mpp")
        if image.mpp is None and (needs_mpp or image.said_mpp):
            said = f" (the file says {image.said_mpp} um)" if image.said_mpp else ""
            so = "so it is followed down to level 0; give --mpp" if needs_mpp else "and this model needs none"
            warnings.append(f"the image has no usable mpp{said}, {so}")
        return warnings

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
    said = {"type": type(error).__name__, "message": str(error)}
    return Outcome({**head, "status": "error", "error": said}, None, error)


def _changed(image: Pyramid) -> PyrtravError | None:
    """The error of an image whose file is no longer the one that was opened: its fingerprint would be another's."""
    try:
        image.check_unchanged()
    except PyrtravError as error:
        return error
    return None
