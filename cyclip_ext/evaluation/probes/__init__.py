"""Probes: what frozen features are worth to a classifier that is trained on them.

    logistic     linear_probe: logistic regression
    neighbours   knn_probe: the nearest training rows vote
    split        rows of the training set to choose settings on
    result       what both have in common: rows, scoring, the result, its plot

A setting (C, k) is chosen on validation rows; the test rows are scored once. Needs scikit-learn.
"""

from .logistic import linear_probe
from .neighbours import knn_probe
from .result import Probe, SweepPoint, plot_sweep
from .split import validation_rows

__all__ = ["Probe", "SweepPoint", "knn_probe", "linear_probe", "plot_sweep", "validation_rows"]
