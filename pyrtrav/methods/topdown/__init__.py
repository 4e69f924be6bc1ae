"""Top-down traversal of an image pyramid with hard attention (the seed method).

Source: "Image classification through top-down image pyramid traversal" (anonymous, under review; later published as
"Hard-Attention for Scalable Image Classification", Papadopoulos, Korus, Memon, NeurIPS 2021).

    paper                               here
    processing level z + 1              depth z
    feature extraction module           encoder: V_n = ``vector``, F_n = ``map``
    location module                     ``Location`` (the policy)
    candidate location, grid of g       cell, edge; ``Grid``
    aggregation module                  ``aggregate``
    merging module (circled plus)       ``merge``
    classification module               ``classify``
    l, p(l | x)                         edges that are on; ``Trace.decision_log_prob``
    p_t (14), p_k (15)                  ``Trace.expected_cells``, ``Trace.mean_by_cell``
    N, M                                images of a batch, ``samples``

Equations implemented: (1) = (13), (2), (3), (4), (5) as stages, (6), (7), (8a), (12), (14), (15).

Differs from the paper:
1. A cell reached through two parents is one region; with ``share_cells`` (default) it is read and encoded once and
   draws its decisions once. p_t then counts distinct cells. ``share_cells=false`` is the paper's tree.
2. The image is centred in a square, never squashed; cells without image area are no candidates and leave every mean.
3. The slope of the leaky ReLU is not stated in the paper; 0.2 is TensorFlow's default.
4. The first batch's mean starts the baseline (12), and a step uses the baseline from before it.
5. c_r is not given in the paper; by default it is the probability at which a policy that favours no place attends
   c_t cells, counted as the paper's tree does (``policy_gradient.probability_for``), and follows c_t while that falls.
6. The default weights (lambda) are not the paper's: with Adam only their ratio and its epsilon matter.
7. REINFORCE compares a draw with the image's other draws (``baseline``); "average" is the paper's (12).
8. The levels of (6) are the prefixes of one sampled traversal, each with its own b.
9. The optimiser is Adam with the paper's epsilon of 1e-8. With weights as small as the paper's 1e-6 and 1e-7 the
   location module's gradients come near it, so that the policy learns at a rate that the ratio to epsilon decides.
10. Two aids for few images, both off with 0: at the start of a stage c_t is higher and falls to its value
   (``explore``), so that the encoder sees enough before the policy has learned; and every attended vector is also
   classified by itself (``lambda_v``), as in the published successor; in images with hints, those that show a hint.
11. Where training images carry region hints, the location module is also asked for the cells that hold them
   (``lambda_g``); alone among the terms of the policy this one also reaches the encoder (``hint_encoder``). A share of
   the draws may follow the hints (``guide``): they are no draws of the policy, so that (1), (2) and (3), the baselines
   and the entropy leave them out. A stage of its own may come first (``lesson``).
12. With ``context="parent"`` the encoder sees a cell in the middle of what its parent's patch shows around it.
"""

from pyrtrav.methods.base import Method, Stage
from pyrtrav.methods.topdown.config import TopDownConfig
from pyrtrav.methods.topdown.learning_rule import LearningRule
from pyrtrav.methods.topdown.lesson import HintLesson
from pyrtrav.methods.topdown.location import LocalLocation, Location
from pyrtrav.methods.topdown.model import TopDown

__all__ = ["METHOD", "LearningRule", "LocalLocation", "Location", "TopDown", "TopDownConfig"]


def stages(config: TopDownConfig) -> list[Stage]:
    """Gradual learning (5): one more depth a stage; or all depths at once. Depth 0 alone is plain classification."""
    depths = range(1, config.max_depth + 1) if config.gradual and config.max_depth else [config.max_depth]
    first = [Stage("lesson", 0, HintLesson(config.max_depth, config.hint_balance))] if config.lesson else []
    return first + [Stage(f"depth {depth}", depth, LearningRule(config, depth)) for depth in depths]


METHOD = Method(
    name="topdown",
    paper="Image classification through top-down image pyramid traversal",
    Config=TopDownConfig,
    supports=frozenset({"select", "budget", "cells", "exit", "hints"}),
    encoders=None,
    build=TopDown,
    stages=stages,
)
