"""Evaluation datasets from disk: a user's specification becomes an ImageDataset.

    opening            the entry: "emoji", "torchvision:cifar10", "folder:PATH", a path, ...
    torchvision_sets   torchvision's datasets by name
    table              CSV and TSV, with labels or captions: the classes of labels
    shards             webdataset in CLIP_benchmark's layout
    winoground         quadruples of images and captions

Folders of classes, tables, shards and caption files are read by cyclip_ext.data. Nothing here
downloads, and images are opened when they are accessed.
"""

from .opening import (
    KINDS,
    AnyDataset,
    accepted_options,
    kind_of,
    open_evaluation_dataset,
)
from .winoground import Quadruples

__all__ = [
    "KINDS",
    "AnyDataset",
    "Quadruples",
    "accepted_options",
    "kind_of",
    "open_evaluation_dataset",
]
