"""Studies that consist of many trainings: run them concurrently, compare seeds, write a page.

    python examples/reproduce.py --help

| module | contents |
| --- | --- |
| `__main__` | the command line |
| `ablations` | objectives that are known to be worse |
| `runs`, `worker` | complete a list of trainings, some concurrently, each in a process of its own |
| `measure` | the measures of a run besides its accuracy |
| `reproduce`, `claims`, `reproduction_page` | ten objectives, a sweep, the claims of both papers |
| `grids` | studies of the size of the data, and of batch size and temperature |
| `values`, `plots`, `pages` | numbers, plots and pages over seeds |
"""
