"""Who classifies: batches go in, outcomes come out, in whatever order they are done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pyrtrav.allocator import keep_memory_flat
from pyrtrav.errors import ConfigError, PyrtravError
from pyrtrav.predict import Input, Outcome, Predictor
from pyrtrav.pyramid.isolated import close_readers
from pyrtrav.selection import Settings

BATCHES_AT_ONCE = 2
"""While the patches of one batch are encoded the images of the next one are opened and read."""

Done = list[tuple[Input, Outcome]]


class Engine(ABC):
    """Classifies batches of images."""

    room: int
    """Batches that are worked on at once."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Batches that were put in and have not come out."""

    @abstractmethod
    def put(self, batch: Sequence[Input]) -> None:
        """Begin with a batch."""

    @abstractmethod
    def next(self) -> Done:
        """Wait for a batch that is done."""

    @abstractmethod
    def close(self) -> None:
        """End all that is under way."""


class LocalEngine(Engine):
    """This process: the fixations of a batch go through the encoder together, several batches at once."""

    def __init__(self, predictor: Predictor, settings: Settings, *, contributions: bool = False) -> None:
        self.predictor, self.settings, self.contributions = predictor, settings, contributions
        self.room = BATCHES_AT_ONCE
        keep_memory_flat()
        self._threads = ThreadPoolExecutor(BATCHES_AT_ONCE, thread_name_prefix="pyrtrav-batch")
        self._futures: list[Future[Done]] = []

    @property
    def waiting(self) -> int:
        return len(self._futures)

    def put(self, batch: Sequence[Input]) -> None:
        self._futures.append(
            self._threads.submit(classify_batch, self.predictor, self.settings, batch, self.contributions)
        )

    def next(self) -> Done:
        done, _ = wait(self._futures, return_when=FIRST_COMPLETED)
        first = next(future for future in self._futures if future in done)
        self._futures.remove(first)
        return first.result()

    def close(self) -> None:
        with self.predictor.stopped():
            self._threads.shutdown(cancel_futures=True)
        close_readers()


def classify_batch(
    predictor: Predictor, settings: Settings, batch: Sequence[Input], contributions: bool = False
) -> Done:
    """Classify together; where that ends in an error that nobody foresaw, one by one, so that it costs one image."""
    try:
        return list(zip(batch, predictor.predict_inputs(batch, settings, contributions=contributions), strict=True))
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - memory, a fault of ours or of a library
        if len(batch) > 1:
            return [done for one in batch for done in classify_batch(predictor, settings, [one], contributions)]
        reason = PyrtravError(f"{batch[0].path}: {type(error).__name__}: {error} (a fault of pyrtrav, or no memory)")
        return [(batch[0], predictor.failed(batch[0], settings, reason))]
