"""Exact, fused, linear-memory losses for CLIP-style pretraining, and a loop around them.

    from cyclip_ext import CyCLIPLoss

| module | contents |
| --- | --- |
| `losses`, `functional` | the public losses, as modules and as functions |
| `matryoshka` | a loss over prefixes of the features |
| `_inputs`, `_dispatch` | their arguments and options; which implementation runs |
| `_pair_terms`, `_cycle_terms` | their terms, over all pairs and from Gram matrices |
| `_fused` | contrastive loss and cycle terms as one node of the graph |
| `_same_label`, `_blocks`, `_sums` | equal labels; blocks of the similarity matrix; means |
| `reference` | the same losses as dense formulas: the specification |
| `ops` | the native operators: shapes, derivatives, FLOPs |
| `libraries` | the compiled libraries: loading, and why one is missing |
| `distributed` | the losses of a batch that is spread over processes |
| `grad_cache` | exact gradients of a large batch in the memory of a small one |
| `info` | `python -m cyclip_ext.info`: a report on the installation |
| `_torch_compat`, `_optional` | all uses of undocumented names of torch; optional imports |
| `_files`, `_output`, `_plotting` | atomic writes; output of the programs; plots |
| `data`, `models`, `training` | the pretraining loop |
| `evaluation` | accuracy and geometry of the embeddings of any model |
| `integrations` | the losses inside the trainers of other packages |

Importing the package imports torch and nothing else; the loop's modules are imported by name.
Dependencies point one way: ops, distributed <- _blocks <- _dispatch <- _inputs <- the terms <-
functional, losses <- training, and data, models <- evaluation <- training; evaluation never imports
training.
"""

from .functional import (
    contrastive_loss,
    cycle_consistency,
    hinge_margin_loss,
    margin_loss,
    sigmoid_loss,
)
from .losses import CLIPLoss, CyCLIPLoss, SigLIPLoss
from .matryoshka import MatryoshkaLoss

__version__ = "0.2.0"

__all__ = [
    "CLIPLoss",
    "CyCLIPLoss",
    "MatryoshkaLoss",
    "SigLIPLoss",
    "contrastive_loss",
    "cycle_consistency",
    "hinge_margin_loss",
    "margin_loss",
    "sigmoid_loss",
]
