"""Studies that take many trainings: run them side by side, compare over seeds, write a page.

    python examples/reproduce.py --help

| module | contents |
| --- | --- |
| `__main__` | the command line |
| `ablations` | objectives that are known to be worse |
| `runs`, `worker` | complete a list of trainings, some at once, each in a process of its own |
| `measure` | what is measured of a run besides its accuracy |
| `reproduce`, `claims`, `reproduction_page` | ten objectives, a sweep, the claims of both papers |
| `grids` | size of the data; batch size and temperature |
| `values`, `plots`, `pages` | numbers, plots and pages over seeds |
"""
