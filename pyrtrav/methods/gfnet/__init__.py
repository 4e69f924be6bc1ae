"""Glance and focus: one look at the whole image, small, and then a few at full resolution where a policy says.

Source: "Glance and Focus: a Dynamic Approach to Reducing Spatial Redundancy in Image Classification"; where it is
silent, the authors' published code.

| paper | code |
|---|---|
| glance, x~_1; H' x W' | the first look, the root; `base_resolution` |
| focus, x~_t | later looks: squares of `focus_side`, in level-0 pixels |
| global and local encoder f_G, f_L | `Gfnet.encoder`, `Gfnet.local` |
| features e_t, pooled | the encoder's `map`, `vector` |
| classifier f_C | `Gfnet.classify`: `RecurrentClassifier` or `CascadedClassifier` |
| patch proposal network pi, l_t, V | `PatchProposal`: `mean`, `value`; an action |
| T; lambda of (3) | `looks`; `encoder_weight` |
| gamma, epsilon, c_1 | `discount`, `ratio_clip`, `value_weight` |
| stages 0 to III | `stages` |

Equations implemented: (3) as `LookLoss`, (4) to (8) in `pyrtrav.ppo`.

Differs from the paper:
1. The image is centred in a square, never squashed, and the glance is the mean over areas, not bicubic. Focus patches
   stay inside the image where it is as large as they are.
2. "Full resolution" is what `downsample`, `finest_mpp` and `halvings` ask for; only a patch's tiles are decoded.
3. Stage 0 trains the global encoder on glances, with the classifier's first step, from the same initial weights (or
   the same pretrained ones) as the local encoder; the paper starts from networks that were trained on whole images at
   full resolution, which slides are too large for.
4. An action's probability is that of the point drawn. The authors' code takes that of the point moved into the range,
   which is no draw of the Gaussian; where to look is the same.
5. The entropy bonus of (8) is left out: of a Gaussian of fixed deviation it has no gradient.
6. One optimiser and schedule for all parts and stages (AdamW), with an `lr` for each stage where wanted; no SGD.
7. `passes` above 1 takes several steps over a batch's looks, as PPO is known for. The authors take one: then the ratio
   is 1 and never clipped. Returns are normalised over the images that are seen at once, as their
   code does: with `accumulate` these are fewer, and of a single image two looks teach nothing. Leave it at 1 here.
8. The cascade has a classifier for the glance too, also where the authors use the global encoder's own. The glance's
   encoder is trained in all stages but the policy's.
9. Which weights a stage keeps is `keep` of training (`accuracy` for the authors' choice).
10. In its tree a look's depth is its place in the chain.
"""

from pyrtrav.methods.base import Method, Stage
from pyrtrav.methods.gfnet.config import GfnetConfig
from pyrtrav.methods.gfnet.learning import LookLoss, PolicyLoss
from pyrtrav.methods.gfnet.model import Gfnet

__all__ = ["METHOD", "Gfnet", "GfnetConfig", "LookLoss", "PolicyLoss"]


def stages(config: GfnetConfig) -> list[Stage]:
    """Return stages 0 to III; a model of the glance alone has the first."""
    last = config.max_depth
    glance = Stage("glance", 0, LookLoss(config, 0, "all"), select="all")
    if last == 0:
        return [glance]
    return [
        glance,
        Stage("random patches", last, LookLoss(config, last, "random"), select="random"),
        Stage("policy", last, PolicyLoss(config), select="all"),
        Stage("fine-tuning", last, LookLoss(config, last, "sample"), select="all"),
    ]


METHOD = Method(
    name="gfnet",
    paper="Glance and Focus",
    Config=GfnetConfig,
    supports=frozenset({"select", "cells", "budget", "exit"}),
    selects=("all", "budget", "sample", "random", "centre"),
    encoders=None,
    build=Gfnet,
    stages=stages,
)
