"""The training loop and its command line.

    __main__.py    command line, errors, exit status
    config.py      typed settings, and the flags and YAML keys made from them
    ranks.py       the processes of a run, alone or under torchrun
    data.py        opens the datasets of a run
    folder.py      the run folder: its name, its lock, the state to continue from
    run.py         one run from settings to report
    compare.py     four runs side by side, over seeds
    trainer.py     the loop: batches, steps, records, validation, checkpoints
    step.py        one optimizer step: copy to the device, forward, backward, update
    objective.py   the loss, from the settings or from the caller
    duplicates.py  pairs of a batch that are not each other's negatives
    optim.py       parameter groups, schedule, temperature
    precision.py   device, autocast, gradient scaling
    stopping.py    Ctrl-C and SIGTERM
    checkpoint.py  atomic checkpoints: the last, the best, those of some epochs
    logging.py     averages, the log file, TensorBoard, Weights & Biases
    assess.py      evaluation/ applied to the data of a run
    report.py      tables, plots, report.md

Losses, kernels and metrics live elsewhere and do not import this package.
"""
