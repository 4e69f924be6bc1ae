"""Many images: what to classify, results appended as they come, one failure never the end of a run."""

from pyrtrav.cohort.engines import make_engine
from pyrtrav.cohort.index import Index
from pyrtrav.cohort.inputs import find_images
from pyrtrav.cohort.results import ResultFile, resume_key, tree_path
from pyrtrav.cohort.run import classify
from pyrtrav.cohort.summary import Summary
from pyrtrav.stopping import Stopped, stopped_by_signals

__all__ = [
    "Index",
    "ResultFile",
    "Stopped",
    "Summary",
    "classify",
    "find_images",
    "make_engine",
    "resume_key",
    "stopped_by_signals",
    "tree_path",
]
