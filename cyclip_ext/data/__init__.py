"""Training pairs and evaluation images, from a path or built in, as `ImageDataset`.

    dataset      Sample, ImageDataset, Subset, InMemoryDataset, DatasetSplits
    skips        BadRecord, and the SkipReport that counts records by reason
    open         `open_dataset`: what a path is, and which reader opens it; built-in datasets
    emoji        the default: seven vendors' drawings with Unicode names (extra `demo`)
    shapes       procedural drawings with the same splits; data of the tests
    debian       clip art and stamps from Debian packages, added to the emoji; fashion-mnist
    options      ReadOptions: how to read a dataset
    tar          img2dataset / webdataset shards, with random access through tar_index, tar_format
    tables       CSV, TSV and Flickr's token file; delimited has their rows
    pairs        image files by name, gathered from rows: what tables and caption files become
    google_tsv   Google's CC3M and CC12M with a folder of downloads
    caption_json COCO's captions and Karpathy's splits
    parquet      img2dataset's parquet output and other parquet files
    folders      image files with captions beside them, or in a folder for each class
    columns      columns of records in one mapped file, built once and shared by all processes
    class_names  text files beside images
    images       decoding: one policy for transparency, rotation, depth, damage and size
    transforms   augmentation and rendering of datasets in memory; crops of files
    captions     reading, cleaning, cutting and choosing captions
    seeding      order and random draws as functions of (seed, epoch, index)
    loader       batches as a function of (seed, epoch, step), divided among ranks
    workers      work spread over processes by torch's DataLoader
    verify       `cyclip-data verify`: reads every record once and counts what is bad
    manifest     the bad records as a file, for training to skip

Nothing here imports models or losses, or downloads. A tokenizer is passed in.
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
from .open import BUILTIN, load_builtin, open_dataset, resolved
from .options import ReadOptions
from .shapes import load_shapes
from .skips import BadRecord, MissingData, SkipReport, TooManyBadRecords, require_usable
from .transforms import Augment, as_input, file_transform, render
from .workers import WorkerDied

__all__ = [
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
