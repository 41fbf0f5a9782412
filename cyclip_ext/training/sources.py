"""Opens what a run trains on, and what it is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..data import (
    NAMED,
    BadRecord,
    DatasetSplits,
    ImageDataset,
    SkipReport,
    Subset,
    load_named,
    open_pairs,
    require_usable,
    resolved,
)
from ..data.tables import typed_separator
from .config import DataConfig

PICTURE_SIZE = 64  # pixels, kept a little above the model's so that augmentation loses nothing

# Of pairs from files, this many at most and this share at most are kept for validation.
HELD_OUT_PAIRS, HELD_OUT_SHARE = 2000, 0.05


@dataclass(frozen=True)
class RunData:
    """What `open_data` opened.

    train: the training pairs. pictures: sets with classes, for zero-shot, of a named data set.
    validation: pairs for retrieval, of files. Exactly one of the two is there.
    description: counts and what was skipped, for the log.
    """

    train: ImageDataset
    description: str
    pictures: DatasetSplits | None = None
    validation: ImageDataset | None = None


def open_data(config: DataConfig) -> RunData:
    """Open `train_data` and `val_data`.

    Of the training pairs `train_fraction` is left, after validation pairs are set apart.

    Raises MissingData where a named data set is not installed, ValueError for files beside one, for
    too few pairs, for too large a share of bad ones, and for validation pairs of which none can be
    read.
    """
    name = resolved(config.train_data)
    note = ""
    if name == "shapes" and config.train_data == "auto":
        note = (
            "training on procedural shapes; for the default data, real drawings: "
            "pip install 'cyclip_ext[demo]'\n"
        )
    if name in NAMED:
        for flag, value in (
            ("val-data", config.val_data),
            ("images", config.images),
            ("first-row", config.first_row or None),
            ("csv-separator", config.csv_separator),
            ("csv-img-key", config.csv_img_key),
            ("csv-caption-key", config.csv_caption_key),
            ("manifest", config.manifest),
        ):
            if value is not None:
                raise ValueError(f"--{flag} is for files, {name} brings its own; got {value!r}")
        pictures = load_named(name, size=PICTURE_SIZE)
        chosen = fraction_of(len(pictures.train), config.train_fraction)
        used = pictures.train if chosen is None else pictures.train.subset(chosen)
        description = note + pictures.describe() + _of_all(used, pictures.train)
        return RunData(used, description, pictures=pictures)
    pairs = _open_files(name, config, config.manifest)
    if config.val_data is not None:
        _require(pairs, 1)
        train, validation = pairs, _open_files(config.val_data, config)
    else:
        train, validation = split_pairs(pairs)
    seen = len(pairs) + pairs.skipped.judged
    require_usable(seen, pairs.skipped, config.max_skipped, pairs.name)
    require_readable(validation)
    description = (
        f"{pairs.name}: {len(train):,} training pairs, {len(validation):,} for validation; "
        f"{pairs.skipped}"
    )
    chosen = fraction_of(len(train), config.train_fraction)
    part = train if chosen is None else Subset(train, chosen)
    return RunData(part, description + _of_all(part, train), validation=validation)


_FRACTION_STREAM = 0x46524143  # no other draw's


def fraction_of(count: int, fraction: float) -> npt.NDArray[np.int64] | None:
    """Indices of a random share of `count` records, at least one, rising; None: all of them.

    The same for every seed, and those of a smaller share are among those of a larger one.
    """
    if fraction == 1:
        return None
    order = np.random.default_rng(_FRACTION_STREAM).permutation(count)
    return np.sort(order[: max(1, round(fraction * count))])


def _of_all(part: ImageDataset, whole: ImageDataset) -> str:
    if len(part) == len(whole):
        return ""
    return f"\n  of the training pairs {len(part):,} are used (--train-fraction)"


def _open_files(path: str, config: DataConfig, manifest: str | None = None) -> ImageDataset:
    return open_pairs(
        path,
        images=config.images,
        first_row=config.first_row,
        separator=typed_separator(config.csv_separator),
        image_key=config.csv_img_key,
        caption_key=config.csv_caption_key,
        manifest=manifest,
    )


def _require(pairs: ImageDataset, least: int) -> None:
    if len(pairs) < least:
        raise ValueError(
            f"no usable pairs in {pairs.name}: {len(pairs)} found, at least {least} needed; "
            f"{pairs.skipped}"
        )


def split_pairs(pairs: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """(training, validation): evenly spaced records are kept out, the same for every seed.

    Raises ValueError, with what was skipped, for fewer than two records.
    """
    _require(pairs, 2)
    count = max(1, min(HELD_OUT_PAIRS, int(len(pairs) * HELD_OUT_SHARE)))
    held_out = np.arange(count) * (len(pairs) // count)
    return Subset(pairs, np.delete(np.arange(len(pairs)), held_out)), Subset(pairs, held_out)


def require_readable(pairs: ImageDataset) -> None:
    """Raises ValueError where no validation record can be read: better now than after an epoch."""
    skipped = SkipReport()
    for index in range(len(pairs)):
        try:
            pairs[index]
        except BadRecord as bad:
            skipped.add(bad.reason, bad.where)
        else:
            return
    raise ValueError(
        f"no validation record of {pairs.name} can be read ({skipped}); check --val-data and "
        "--images"
    )
