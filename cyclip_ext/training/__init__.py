"""The training loop and its command line: what examples/pretrain_cc3m.py executes.

    main.py        the entry: command line, errors, exit status
    config.py      typed settings; flags and YAML made from them
    ranks.py       the processes of a run, alone or under torchrun
    sources.py     opens the data that is trained and measured on
    run.py         one run from settings to report
    compare.py     four runs side by side, over seeds
    loop.py        the steps of a run
    towers.py      the model's two towers as one call, for DDP and torch.compile
    objective.py   the loss a run asks for
    ablations.py   losses that are known to be worse, to show why
    optim.py       parameter groups, schedule, temperature
    precision.py   device, autocast, gradient scaling
    stopping.py    Ctrl-C and SIGTERM
    checkpoint.py  whole files or none; the last, the best, those kept
    meters.py      averages between two records
    tracking.py    JSON lines, TensorBoard, Weights & Biases
    assess.py      evaluation/ applied to a run's data
    report.py      tables, plots, report.md

Losses, kernels and metrics live elsewhere and do not know about this folder.
"""
