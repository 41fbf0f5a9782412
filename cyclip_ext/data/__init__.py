"""Training pairs and evaluation sets. Text stays text here: tokenizing belongs to training.

    source       what `--train-data` accepts, and which reader serves it
    emoji        the default: seven vendors' drawings with Unicode names (extra `demo`)
    shapes       procedural stand-in with the same parts; data of the tests
    debian       clip art and stamps from Debian packages, added to the emoji; fashion-mnist
    tar          img2dataset / webdataset shards, random access by an index of offsets
    tar_index    that index: built once in parallel, kept on disk
    tar_format   where the members of an archive are
    tables       CSV and TSV with a header; Google's CC3M TSV with a folder of downloads
    folders      image files with captions beside them
    dataset      ImageDataset, which every reader is: Sample, Subset, InMemoryDataset, DatasetSplits
    skips        BadRecord, and the SkipReport that counts them
    images       decoding: one policy for transparency, rotation, depth, damage and size
    transforms   augmentation and rendering of sets in memory; open_clip's transform for files
    captions     which caption a record is trained with, and another for its second view
    seeding      order and draws as functions of (seed, epoch, index)
    loader       batches as a function of (seed, epoch, step), divided among ranks
    processes    work spread over processes, in order, with no way to hang
    verify       `python -m cyclip_ext.data verify`: reads everything once, counts, compares
    duplicates   equal captions and images, and what they cost in a batch
    manifest     what verify found bad, for training to leave out

Nothing here knows models, losses, tokenizers or devices; nothing downloads.
"""

from .dataset import (
    DatasetSplits,
    FileDataset,
    ImageDataset,
    InMemoryDataset,
    Sample,
    Subset,
    Superclasses,
)
from .emoji import emoji_available, load_emoji
from .loader import Batch, Loader
from .workers import WorkerDied
from .shapes import load_shapes
from .skips import BadRecord, MissingData, SkipReport, TooManyBadRecords, require_usable
from .source import NAMED, load_named, open_pairs, resolved
from .transforms import Augment, as_input, file_transform, render

__all__ = [
    "NAMED",
    "Augment",
    "BadRecord",
    "Batch",
    "DatasetSplits",
    "FileDataset",
    "ImageDataset",
    "InMemoryDataset",
    "Loader",
    "MissingData",
    "Sample",
    "SkipReport",
    "Subset",
    "Superclasses",
    "TooManyBadRecords",
    "WorkerDied",
    "as_input",
    "emoji_available",
    "file_transform",
    "load_emoji",
    "load_named",
    "load_shapes",
    "open_pairs",
    "render",
    "require_usable",
    "resolved",
]
