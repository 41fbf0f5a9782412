"""The whole evaluation as a list of outcomes, one file per task.

    classification, hierarchy, neighbours, retrieval, probes, shift,
    composition, geometry, margins, completeness     one task on one set: numbers, tables, plots
    data         sets as embeddings
    tasks        their names, and which a set is fit for
    pictures     a named data set of this package
    opened       sets that open_set opens
    embeddings   a .npz file
    checkpoints  several models on one set

The numbers come from evaluation/*.py and analysis/; nothing is measured here by other code.
"""

from .tasks import TASKS

__all__ = ["TASKS"]
