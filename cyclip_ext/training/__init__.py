"""The training loop and its command line: what examples/pretrain_cc3m.py executes.

    config.py      typed settings and the command line made from them
    sources.py     opens the data that is trained and evaluated on
    optim.py       parameter groups, schedule, temperature
    loop.py        the steps of a run
    checkpoint.py  whole files or none
    assess.py      evaluation/ applied to a run's data
    report.py      metrics as JSON lines, plots, report.md
    compare.py     several runs side by side, over seeds
    main.py        the entry

Losses, kernels and metrics live elsewhere and do not know about this folder.
"""
