"""Evaluation datasets, opened as ImageDataset by a specification such as a name or a path.

    opening            the entry: "emoji", "torchvision:cifar10", "folder:PATH", a path, ...
    torchvision_sets   torchvision's datasets by name
    webdataset         tar shards in CLIP_benchmark's layout
    winoground         quadruples of images and captions

All other formats are read by `cyclip_ext.data`, as in training. Nothing here downloads, and images
are opened when they are accessed.
"""

from .opening import AnyDataset, applicable, open_evaluation_dataset, options_of
from .winoground import Quadruples

__all__ = ["AnyDataset", "Quadruples", "applicable", "open_evaluation_dataset", "options_of"]
