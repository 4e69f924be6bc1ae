"""The same cohort on many machines: Ray's actors classify, this process keeps the results.

Images and results must be reachable under the same paths from every machine. A worker that is lost (killed, out of
memory, its machine gone) is started again by Ray; its images are done again once, one by one, so that if one of them
is the reason it alone fails.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pyrtrav.cohort.engine import Done, Engine, classify_batch
from pyrtrav.errors import ConfigError, WorkerLostError
from pyrtrav.model_file import LoadedModel
from pyrtrav.predict import Input, Predictor
from pyrtrav.pyramid.source import full_name
from pyrtrav.selection import Settings

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Nothing is sent to anyone, and Ray changes no variable of workers without a GPU."""

OBJECT_STORE_BYTES = 256 << 20
"""Of a cluster of our own: records and trees are small."""

BATCHES_AT_ONCE = 2
"""Of a worker: while one is encoded the next one is read."""


class Worker:
    """What runs in an actor."""

    def __init__(self, loaded: LoadedModel, device: str, isolate: str, max_seconds: float | None) -> None:
        self.predictor = Predictor(loaded, device=device, isolate=isolate, max_seconds=max_seconds)

    def device_type(self) -> str:
        return self.predictor.device.type

    def process(self) -> int:
        return os.getpid()

    def classify(self, settings: Settings, batch: Sequence[Input]) -> Done:
        return classify_batch(self.predictor, settings, batch)


class RayEngine(Engine):
    """Actors, one a GPU or else one a core."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        *,
        device: str = "auto",
        address: str | None = None,
        workers: int | None = None,
    ) -> None:
        """Start or join a cluster, and the workers.

        Raises:
            ConfigError: the extra ``ray`` is missing, no cluster is at the address, or its workers do not start.
        """
        self._ray = ray = _import_ray()
        self.predictor, self.settings = predictor, settings
        self._ours = _connect(ray, address, workers)
        try:
            gpus = int(ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
            count = workers or gpus or int(ray.cluster_resources().get("CPU", 1))
            actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_concurrency=BATCHES_AT_ONCE)(
                Worker
            )
            model = ray.put(predictor.loaded)
            self.actors = [actor.remote(model, device, predictor.isolate, predictor.max_seconds) for _ in range(count)]
            # Resume keys hold the device on which images are classified, not this process's.
            predictor.device_type = ray.get([one.device_type.remote() for one in self.actors])[0]
        except Exception as error:
            self.close()
            if isinstance(error, ray.exceptions.RayError):
                raise ConfigError(f"Ray's workers do not start: {_first_line(error)}") from error
            raise
        self.room = count * BATCHES_AT_ONCE
        self._batches: dict[Any, tuple[int, Sequence[Input], bool]] = {}
        """By task: whose it is, its images, and whether a worker was lost with them before."""

    @property
    def waiting(self) -> int:
        return len(self._batches)

    def put(self, batch: Sequence[Input]) -> None:
        # Workers run in folders of their own.
        self._begin([Input(full_name(image.path), image.mpp) for image in batch], again=False)

    def _begin(self, batch: Sequence[Input], *, again: bool) -> None:
        loads = [0] * len(self.actors)
        for number, _, _ in self._batches.values():
            loads[number] += 1
        number = loads.index(min(loads))
        task = self.actors[number].classify.remote(self.settings, batch)
        self._batches[task] = number, batch, again

    def next(self) -> Done:
        (task, *_), _ = self._ray.wait(list(self._batches))
        _, batch, again = self._batches.pop(task)
        try:
            done: Done = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            if again:
                return [(image, self._lost(image, error)) for image in batch]
            for image in batch:
                self._begin([image], again=True)
            return []
        return done

    def _lost(self, image: Input, error: Exception) -> Any:
        reason = f"{image.path}: the worker that classified it was lost, and so was the next one: {_first_line(error)}"
        return self.predictor.failed(image, self.settings, WorkerLostError(reason))

    def close(self) -> None:
        for actor in getattr(self, "actors", ()):
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


def _connect(ray: Any, address: str | None, workers: int | None) -> bool:
    """Join a cluster or start one; returns whether it is to be left at the end."""
    if ray.is_initialized():
        return False
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    own: dict[str, Any] = {
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    try:
        ray.init(
            address=address or "local",
            logging_level="ERROR",
            log_to_driver=False,
            **({} if address else own),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster can be used at {address or 'this machine'}: {_first_line(error)}") from error
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("many machines need the extra `ray`: pip install 'pyrtrav[ray]'") from error
    return ray
