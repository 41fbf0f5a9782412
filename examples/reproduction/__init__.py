"""Questions that take many trainings: runs side by side, collected, compared over seeds.

    python -m cyclip_ext.studies --help
    python examples/reproduce.py

| module | what lives there |
| --- | --- |
| `runs` | completes a list of trainings: some at once, interruptible, resumable |
| `worker` | one of them, in a process of its own |
| `measure` | what is measured of a run beside its accuracy |
| `reproduce`, `claims`, `reproduction_page` | ten objectives, a sweep, both papers' claims |
| `grids` | size of the data; batch size and temperature |
| `values`, `drawing`, `pages` | tables and plots over seeds |

What must not live here: how a run trains (cyclip_ext.training) and what is measured
(cyclip_ext.evaluation, cyclip_ext.analysis).
"""

from .runs import Run, complete

__all__ = ["Run", "complete"]
