"""Evaluation sets from disk: what a user names becomes one of the classes of sets.py.

    open_set           the entry: "torchvision:cifar10", "folder:PATH", a path, ...
    torchvision_sets   torchvision's sets by name
    folder             a subfolder for each class
    table              CSV and TSV, with labels or captions
    shards             webdataset in CLIP_benchmark's layout
    coco               captions in COCO's JSON
    winoground         quadruples of pictures and captions
    files              pictures that are files of their own
    names              class names in text files beside the pictures

Nothing here downloads, and pictures are opened when they are asked for.
"""

from .open_set import KINDS, open_set

__all__ = ["KINDS", "open_set"]
