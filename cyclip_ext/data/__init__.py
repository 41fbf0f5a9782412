"""Training pairs and evaluation sets. Text stays text here: tokenizing belongs to training.

    source       what `--train-data` accepts, and which reader serves it
    emoji        the default: seven vendors' drawings with Unicode names (extra `demo`)
    shapes       procedural stand-in with the same parts; data of the tests
    debian       clip art and stamps from Debian packages, added to the emoji; fashion-mnist
    tar          img2dataset / webdataset shards, random access by an index of offsets
    tables       CSV and TSV with a header; Google's CC3M TSV with a folder of downloads
    records      what a source hands out: Record, Pairs, BadRecord, SkipReport
    pictures     sets in memory: MemoryPairs, PictureSet with classes and domains, PictureData
    images       decoding: one policy for transparency, rotation, depth, damage and size
    transforms   augmentation and rendering of sets in memory; open_clip's transform for files
    seeding      order and draws as functions of (seed, epoch, index)
    loader       batches as a function of (seed, epoch, step)

Nothing here knows models, losses, tokenizers or devices; nothing downloads.
"""

from .emoji import emoji_available, load_emoji
from .loader import Batch, Loader, make_loader
from .pictures import Classes, MemoryPairs, PictureData, PictureSet
from .records import BadRecord, MissingData, Pairs, Record, SkipReport
from .shapes import load_shapes
from .source import NAMED, load_named, open_pairs
from .transforms import Augment, file_transform, render

__all__ = [
    "NAMED",
    "Augment",
    "BadRecord",
    "Batch",
    "Classes",
    "Loader",
    "MemoryPairs",
    "MissingData",
    "Pairs",
    "PictureData",
    "PictureSet",
    "Record",
    "SkipReport",
    "emoji_available",
    "file_transform",
    "load_emoji",
    "load_named",
    "load_shapes",
    "make_loader",
    "open_pairs",
    "render",
]
