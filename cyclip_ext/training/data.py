"""Open the datasets that a run is trained and validated on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data import (
    BUILTIN,
    BadRecord,
    DatasetSplits,
    ImageDataset,
    ReadOptions,
    SkipReport,
    Subset,
    load_builtin,
    open_dataset,
    require_usable,
    resolved,
)
from .config import READ_OPTIONS, VAL, DataConfig

IMAGE_SIZE = 64  # pixels, a little more than the model's so that augmentation loses nothing

# Largest number and largest share of the pairs from files that are set apart for validation.
HELD_OUT_PAIRS, HELD_OUT_SHARE = 2000, 0.05


@dataclass(frozen=True)
class RunData:
    """The datasets of a run.

    train: the training pairs. splits: a built-in dataset, whose evaluation datasets have classes.
    validation: pairs for retrieval, from files. Exactly one of the two is given. description:
    counts, for the screen.
    """

    train: ImageDataset
    description: str
    splits: DatasetSplits | None = None
    validation: ImageDataset | None = None

    @property
    def name(self) -> str:
        """The name of the dataset, for titles."""
        return self.train.name if self.splits is None else self.splits.name

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The training and the validation records."""
        validation = self.validation
        if validation is None:
            assert self.splits is not None
            validation = self.splits.evaluation["validation"]
        return {"training": self.train, "validation": validation}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Return a digest of the records of each part, in their order."""
        return {name: dataset.fingerprint() for name, dataset in self.parts.items()}

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return the usable records of each part, and those that opening skipped."""
        opened = {name: dataset.skipped for name, dataset in self.parts.items()}
        if self.splits is not None:
            opened["training"] = self.splits.skipped
        return {
            name: record_counts(len(dataset), opened[name]) for name, dataset in self.parts.items()
        }


def record_counts(used: int, skipped: SkipReport) -> dict[str, Any]:
    """Return how many records are used, of how many, and the others by reason with examples."""
    return {"used": used, "total": used + skipped.total, "skipped": skipped.to_dict()}


def open_data(config: DataConfig) -> RunData:
    """Open `train_data` and `val_data`.

    `train_fraction` reduces the training pairs after validation pairs are set apart.

    Raises MissingData if a built-in dataset is not installed, ValueError for options that do not
    apply, for too few pairs, for too large a share of bad ones, and if no validation pair can be
    read.
    """
    name = resolved(config.train_data)
    if name in BUILTIN:
        _require_no_file_options(config, name)
        note = ""
        if name == "shapes" and config.train_data == "auto":
            note = (
                "training on procedural shapes; for the default data, real drawings: "
                "pip install 'cyclip_ext[demo]'\n"
            )
        splits = load_builtin(name, size=IMAGE_SIZE)
        chosen = fraction_of(len(splits.train), config.train_fraction)
        used = splits.train if chosen is None else splits.train.subset(chosen)
        description = note + splits.describe() + _fraction_note(used, splits.train)
        return RunData(used, description, splits=splits)
    pairs = _open_files(name, config, "")
    if config.val_data is not None:
        _require(pairs, 1)
        train, validation = pairs, _open_files(config.val_data, config, VAL)
    else:
        for option in READ_OPTIONS:
            if getattr(config, VAL + option) is not None:
                raise ValueError(
                    f"{_flag(VAL + option)} applies to --val-data, which is not given; pass both"
                )
        train, validation = split_pairs(pairs)
    for opened in {id(pairs): pairs, id(validation): validation}.values():
        seen = opened.entries() + opened.skipped.judged
        require_usable(seen, opened.skipped, config.max_skipped, opened.name)
    require_readable(validation, "" if config.val_data is None else VAL)
    description = (
        f"{pairs.name}: {len(train):,} training pairs, {len(validation):,} for validation; "
        f"{pairs.skipped}"
    )
    if config.val_data is not None:
        description += f"\n  {validation.name}: {validation.skipped}"
    chosen = fraction_of(len(train), config.train_fraction)
    part = train if chosen is None else Subset(train, chosen)
    return RunData(part, description + _fraction_note(part, train), validation=validation)


def _require_no_file_options(config: DataConfig, name: str) -> None:
    for option in (*READ_OPTIONS, "val_data", *(VAL + own for own in READ_OPTIONS)):
        value = getattr(config, option)
        if value is not None:
            raise ValueError(
                f'{_flag(option)} only applies to files; "{name}" has its own validation data (got '
                f"{value!r})"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _open_files(path: str, config: DataConfig, prefix: str) -> ImageDataset:
    options = ReadOptions(**{name: getattr(config, prefix + name) for name in READ_OPTIONS})
    try:
        return open_dataset(path, options)
    except ValueError as error:
        if not prefix:
            raise
        # The message names the flags of training data.
        flags = "|".join(name.replace("_", "-") for name in READ_OPTIONS)
        message = re.sub(rf"--({flags})\b", r"--val-\1", str(error))
        raise ValueError(f"--val-data: {message}") from error


_FRACTION_STREAM = 0x46524143  # used for no other draw


def fraction_of(count: int, fraction: float) -> npt.NDArray[np.int64] | None:
    """Return the rising indices of a random share of `count` records, at least one; None: all.

    The share is the same for every seed, and a smaller share is a part of a larger one.
    """
    if fraction == 1:
        return None
    order = np.random.default_rng(_FRACTION_STREAM).permutation(count)
    return np.sort(order[: max(1, round(fraction * count))])


def _fraction_note(part: ImageDataset, whole: ImageDataset) -> str:
    if len(part) == len(whole):
        return ""
    return f"\n  of the training pairs {len(part):,} are used (--train-fraction)"


def _require(pairs: ImageDataset, least: int) -> None:
    if len(pairs) < least:
        raise ValueError(
            f"no usable pairs in {pairs.name}: {len(pairs)} found, at least {least} needed; "
            f"{pairs.skipped}"
        )


def split_pairs(pairs: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """Split pairs into training and validation: evenly spaced records, the same for every seed.

    Raises ValueError, with what was skipped, for fewer than two records.
    """
    _require(pairs, 2)
    count = max(1, min(HELD_OUT_PAIRS, int(len(pairs) * HELD_OUT_SHARE)))
    held_out = np.arange(count) * (len(pairs) // count)
    validation = Subset(pairs, held_out)
    validation.skipped = SkipReport()  # the training pairs have the report of the whole
    return Subset(pairs, np.delete(np.arange(len(pairs)), held_out)), validation


def require_readable(pairs: ImageDataset, prefix: str) -> None:
    """Raise ValueError if no validation record can be read, before the first epoch is spent.

    prefix: of the options that name the records, for the message.
    """
    skipped = SkipReport()
    for index in range(len(pairs)):
        try:
            pairs[index]
        except BadRecord as bad:
            skipped.add(bad.reason, bad.where)
        else:
            return
    raise ValueError(
        f"no validation record of {pairs.name} can be read ({skipped}); check "
        f"{_flag((prefix or 'train_') + 'data')} and {_flag(prefix + 'images')}"
    )
