"""The training loop and its command line: what examples/pretrain_cc3m.py executes.

    main.py        the entry: command line, errors, exit status
    config.py      typed settings and the flags made from them
    sources.py     opens the data that is trained and measured on
    run.py         one run from settings to report
    compare.py     four runs side by side, over seeds
    loop.py        the steps of a run
    objective.py   the loss a run asks for
    optim.py       parameter groups, schedule, temperature
    precision.py   device and autocast
    checkpoint.py  whole files or none
    assess.py      evaluation/ applied to a run's data
    report.py      metrics as JSON lines, tables, plots, report.md

Losses, kernels and metrics live elsewhere and do not know about this folder.
"""
