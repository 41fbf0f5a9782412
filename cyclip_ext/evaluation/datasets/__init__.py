"""Evaluation datasets from disk: a user's specification becomes an ImageDataset.

    opening            the entry: "emoji", "torchvision:cifar10", "folder:PATH", a path, ...
    torchvision_sets   torchvision's datasets by name
    folder             a subfolder for each class
    table              CSV and TSV, with labels or captions
    shards             webdataset in CLIP_benchmark's layout
    coco               captions in COCO's JSON
    winoground         quadruples of images and captions
    files              images that are files of their own
    names              class names in text files beside the images

Nothing here downloads, and images are opened when they are accessed.
"""

from .opening import KINDS, AnyDataset, kind_of, open_evaluation_dataset
from .winoground import Quadruples

__all__ = ["KINDS", "AnyDataset", "Quadruples", "kind_of", "open_evaluation_dataset"]
