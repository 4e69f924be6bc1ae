"""A run over a cohort: what is done is skipped, the rest goes through an engine, and each result is kept at once."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from pyrtrav.cohort.engine import Engine, LocalEngine
from pyrtrav.cohort.results import ResultFile, tree_path
from pyrtrav.errors import ConfigError
from pyrtrav.files import make_folder
from pyrtrav.predict import IMAGES_AT_ONCE, Input, Outcome, Predictor
from pyrtrav.selection import Settings
from pyrtrav.tree import Record

_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""What file systems say of a file name that they do not take."""


def classify(
    predictor: Predictor,
    images: Sequence[Input],
    settings: Settings,
    *,
    out: ResultFile | None = None,
    save_trees: str | os.PathLike[str] | None = None,
    engine: Engine | None = None,
) -> Iterator[Record]:
    """Yield a record for every image, failed ones too, as they are done; what ``out`` holds is not done again.

    Args:
        engine: who classifies; by default this process. It is closed at the end.
    """
    if save_trees is not None:
        make_folder(save_trees)
    engine = engine or LocalEngine(predictor, settings, contributions=save_trees is not None)

    def kept(image: Input, outcome: Outcome) -> Record:
        # The tree first: a record in the results means that its tree is there.
        if outcome.tree is not None and save_trees is not None:
            try:
                outcome.tree.save(tree_path(save_trees, outcome.record))
            except ConfigError as error:
                # Others, such as a full disk, are no fault of this image's.
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NAMES:
                    raise
                outcome = predictor.failed(image, settings, error)
        if out is not None:
            out.add(outcome.record)
        return outcome.record

    try:
        batch: list[Input] = []
        for number, image in enumerate(images):
            known = out.known(predictor, image, settings) if out is not None else None
            if known is not None and (save_trees is None or os.path.exists(tree_path(save_trees, known))):
                yield known
            else:
                batch.append(image)
            if len(batch) == IMAGES_AT_ONCE or (batch and number == len(images) - 1):
                engine.put(batch)
                batch = []
            while engine.waiting > engine.room:
                yield from [kept(*done) for done in engine.next()]
        while engine.waiting:
            yield from [kept(*done) for done in engine.next()]
    finally:
        engine.close()
