"""Questions that take many trainings: runs side by side, collected, compared over seeds.

    python -m cyclip_ext.studies --help
    python examples/reproduce.py

| module | what lives there |
| --- | --- |
| `runs` | completes a list of trainings: some at once, interruptible, resumable |
| `worker` | one of them, in a process of its own |
| `reproduce` | nine objectives and a sweep: the claims of both papers on the default data |
| `report` | tables and plots over seeds |

What must not live here: how a run trains (cyclip_ext.training) and what is measured
(cyclip_ext.evaluation, cyclip_ext.analysis).
"""

from .runs import Run, complete

__all__ = ["Run", "complete"]
