"""Training pairs and evaluation sets. Text stays text here: tokenizing belongs to training.

    open         what `--train-data` accepts, and which reader serves it
    emoji        the default: seven vendors' drawings with Unicode names (extra `demo`)
    shapes       procedural stand-in with the same parts; data of the tests
    debian       clip art and stamps from Debian packages, added to the emoji; fashion-mnist
    tar          img2dataset / webdataset shards, random access by an index of offsets
    tar_index    that index: the samples of each shard, found once in parallel
    tar_format   where the members of an archive are
    tables       CSV and TSV with a header, Flickr's token file; images grouped with their captions
    delimited    rows of such files: line ends, separator, quotes
    google_tsv   Google's CC3M and CC12M with a folder of downloads
    caption_json COCO's captions and Karpathy's splits
    parquet      img2dataset's parquet output and other parquet files
    folders      image files with captions beside them, or in a folder for each class
    columns      columns of records in one mapped file, built once and shared by all processes
    caption_files, class_names  text files beside images
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
from .open import (
    BUILTIN,
    NAMED,
    ReadOptions,
    load_builtin,
    load_named,
    open_dataset,
    open_pairs,
    resolved,
)
from .shapes import load_shapes
from .skips import BadRecord, MissingData, SkipReport, TooManyBadRecords, require_usable
from .transforms import Augment, as_input, file_transform, render
from .workers import WorkerDied

__all__ = [
    "NAMED",
    "load_named",
    "open_pairs",
    "BUILTIN",
    "Augment",
    "BadRecord",
    "Batch",
    "DatasetSplits",
    "FileDataset",
    "ImageDataset",
    "InMemoryDataset",
    "Loader",
    "MissingData",
    "ReadOptions",
    "Sample",
    "SkipReport",
    "Subset",
    "Superclasses",
    "TooManyBadRecords",
    "WorkerDied",
    "as_input",
    "emoji_available",
    "file_transform",
    "load_builtin",
    "load_emoji",
    "load_shapes",
    "open_dataset",
    "render",
    "require_usable",
    "resolved",
]
