"""The losses of a batch that is spread over the ranks of a process group.

A rank holds n rows of each tower. It computes its rows against all columns, a rectangle of the
similarity matrix. The columns are the texts of all ranks. Two exchanges differ in how a rank
receives them; a third has no rectangles:

    "gather"     an all-gather beforehand and a reduce-scatter of the gradients; memory O(N d)
    "ring"       block by block from the neighbour while the previous block is computed; the
                 gradients follow in a second round; memory O(n d)
    "replicate"  an all-gather of both towers; each rank computes the whole loss, with the bits
                 of one process; nothing is sent in the backward pass

| module | contents |
| --- | --- |
| `groups` | the processes that share the batch, looked up at each call |
| `batch` | `agree`: the first exchange of a loss, which compares the ranks' arguments |
| `collectives` | the differentiable collectives, each the transpose of another |
| `ring` | this rank's rows against all columns, in one block or block by block |

Forward gives the loss L of the whole batch on every rank. Backward gives W dL/dx on each of W
ranks, so that the average over ranks that DistributedDataParallel takes is exact. The gradient of
a replicated parameter is W times this rank's share. The upstream gradient must be the same on all
ranks. Sums run in the order of ranks, so two runs give the same bits. There are no second
derivatives.

Formulas belong in cyclip_ext.reference, argument checks in cyclip_ext._inputs. docs/distributed.md
describes usage and costs.
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
