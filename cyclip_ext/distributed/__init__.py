"""The losses of a batch that is spread over the ranks of a process group.

A rank holds n rows of each tower. It computes its rows against all columns, a rectangle of the
similarity matrix, and no rank holds more. Two exchanges differ in how the columns, the texts of the
other ranks, get here; a third does without rectangles:

    "gather"  an all-gather beforehand and a reduce-scatter of their gradients; memory O(N d)
    "ring"    block after block from the neighbour while the previous block is computed, their
              gradients with them on a second tour; memory O(n d)
    "replicate"  all features to all ranks, each of which computes the whole loss, as one process
              would and to the same bits; nothing is sent in the backward pass

| module | what lives there |
| --- | --- |
| `groups` | which processes share the batch, found anew at each call |
| `batch` | `agree`: what the ranks exchange before anything else, and what follows from it |
| `collectives` | the differentiable collectives, each the transpose of another |
| `ring` | this rank's rows against all columns, in one block or block by block on tour |

Forward gives the loss L of the whole batch on every rank. Backward gives W dL/dx on each of W
ranks, so that the average over ranks that DistributedDataParallel takes is exact; of a replicated
parameter, W times this rank's share. That needs one upstream gradient, equal on all ranks. Sums
run in the order of ranks: two runs give the same bits. There are no second derivatives.

What must not live here: formulas (cyclip_ext.reference) and the arguments of the losses
(cyclip_ext._inputs). docs/distributed.md has usage and costs.
"""

from . import groups
from .batch import Arguments, Batch, Exchange, agree
from .collectives import all_sum, gather_constants, gather_rows, own_columns, replicate_rows
from .ring import Block, Tensors, all_blocks

__all__ = [
    "Arguments",
    "Batch",
    "Block",
    "Exchange",
    "Tensors",
    "agree",
    "all_blocks",
    "all_sum",
    "gather_constants",
    "gather_rows",
    "groups",
    "own_columns",
    "replicate_rows",
]
