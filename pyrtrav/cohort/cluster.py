"""The same cohort on many machines: Ray's actors classify, this process keeps the results.

Images and results must be reachable under the same paths from every machine. A worker that is lost (killed, out of
memory, its machine gone) is replaced; its images are done again once, one by one, so that if one of them
is the reason it alone fails.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from pyrtrav.cohort.engine import Done, Engine, classify_batch
from pyrtrav.errors import ConfigError, WorkerLostError
from pyrtrav.model_file import LoadedModel
from pyrtrav.predict import Input, Outcome, Predictor
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

    def classify(self, settings: Settings, batch: Sequence[Input], contributions: bool) -> Done:
        return classify_batch(self.predictor, settings, batch, contributions)


class _Task(NamedTuple):
    """Images that a worker classifies."""

    worker: int
    batch: Sequence[Input]
    again: bool
    """Whether a worker was lost with them before."""


class RayEngine(Engine):
    """Actors, one a GPU or else one a core."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        *,
        contributions: bool = False,
        device: str = "auto",
        address: str | None = None,
        workers: int | None = None,
    ) -> None:
        """Start or join a cluster, and the workers.

        Raises:
            ConfigError: the extra ``ray`` is missing, no cluster is at the address, or its workers do not start.
        """
        self._ray = ray = _import_ray()
        self.predictor, self.settings, self._device = predictor, settings, device
        self.contributions = contributions
        self._workers: dict[int, Any] = {}
        self._starting: dict[Any, int] = {}
        """By the first question to it, the number of a worker that is not there yet."""
        self._queue: deque[tuple[Sequence[Input], bool]] = deque()
        self._tasks: dict[Any, _Task] = {}
        self._numbers = count()
        self._ours = _connect(ray, address, workers)
        try:
            there = ray.cluster_resources()
            self._gpus = int(there.get("GPU", 0)) if device != "cpu" else 0
            wanted = workers or self._gpus or int(there.get("CPU", 1))
            self.room = wanted * BATCHES_AT_ONCE
            self._model = ray.put(predictor.loaded)
            for _ in range(wanted):
                self._start()
            while len(self._starting) == wanted:
                self._wait()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        kind = self._ray.remote(num_cpus=1, num_gpus=1 if self._gpus else 0, max_concurrency=BATCHES_AT_ONCE)(Worker)
        number, predictor = next(self._numbers), self.predictor
        self._workers[number] = kind.remote(self._model, self._device, predictor.isolate, predictor.max_seconds)
        self._starting[self._workers[number].device_type.remote()] = number

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._tasks)

    def put(self, batch: Sequence[Input]) -> None:
        # Workers run in folders of their own.
        self._queue.append(([Input(full_name(image.path), image.mpp) for image in batch], False))
        self._hand_out()

    def _hand_out(self) -> None:
        """Give what waits to the workers that are there and have least to do, and no more than they work on at once.

        Images of a lost worker come first, and each has a worker to itself: what else was there would be lost with it.
        """
        while self._queue:
            loads = dict.fromkeys(self._workers.keys() - set(self._starting.values()), 0)
            for task in self._tasks.values():
                if task.worker in loads:
                    loads[task.worker] += _load(task.again)
            number = min(loads, key=loads.__getitem__, default=None)
            batch, again = self._queue[0]
            if number is None or loads[number] + _load(again) > BATCHES_AT_ONCE:
                return
            self._queue.popleft()
            asked = self._workers[number].classify.remote(self.settings, batch, self.contributions)
            self._tasks[asked] = _Task(number, batch, again)

    def next(self) -> Done:
        while True:
            self._hand_out()
            done = self._wait()
            if done is not None:
                return done

    def _wait(self) -> Done | None:
        """Wait for a worker to be there or a batch to be done."""
        if not self._tasks and not self._starting:
            raise WorkerLostError("Ray has no workers left; look at its cluster, and go on with --resume")
        (ready, *_), _ = self._ray.wait([*self._tasks, *self._starting])
        if ready in self._starting:
            self._welcome(ready)
            return None
        task = self._tasks.pop(ready)
        try:
            done: Done = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            if isinstance(getattr(error, "cause", None), ConfigError):
                raise error.cause from None
            return self._redo(task, error)
        return done

    def _welcome(self, ready: Any) -> None:
        number = self._starting.pop(ready)
        try:
            # Resume keys hold the device on which images are classified, not this process's.
            self.predictor.device_type = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            del self._workers[number]
            if not self._workers:
                raise ConfigError(f"Ray's workers do not start: {_first_line(error)}") from error

    def _redo(self, task: _Task, error: Exception) -> Done:
        """Images of a worker that was lost: another takes its place."""
        if self._workers.pop(task.worker, None) is not None:
            self._start()
        if task.again:
            return [(image, self._lost(image, error)) for image in task.batch]
        self._queue.extendleft(([image], True) for image in task.batch)
        return []

    def _lost(self, image: Input, error: Exception) -> Outcome:
        reason = f"{image.path}: the worker that classified it was lost, and so was the next one: {_first_line(error)}"
        return self.predictor.failed(image, self.settings, WorkerLostError(reason))

    def close(self) -> None:
        for actor in self._workers.values():
            self._ray.kill(actor)
        self._workers = {}
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


def _load(again: bool) -> int:
    """What a batch takes of a worker."""
    return BATCHES_AT_ONCE if again else 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("many machines need the extra `ray`: pip install 'pyrtrav[ray]'") from error
    return ray
