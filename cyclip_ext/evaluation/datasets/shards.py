"""Tar shards in CLIP_benchmark's layout: classification (.cls) and retrieval (.txt)."""

from __future__ import annotations

from pathlib import Path

from ...data import MissingData
from ...data.class_names import CLASS_NAMES_FILE, read_lines, read_names
from ...data.tar import TarDataset
from ..prompts import read_templates

TEMPLATES_FILE = "zeroshot_classification_templates.txt"
SHARDS_FILE = "nshards.txt"
KIND_FILE = "dataset_type.txt"
CLASSIFICATION, RETRIEVAL = "classification", "retrieval"


def open_shards(folder: Path, split: str = "test") -> TarDataset:
    """Open a webdataset as CLIP_benchmark writes it.

        classnames.txt                             line k is the class of label k
        zeroshot_classification_templates.txt      a template per line, "{c}" for the class; optional
        <split>/0.tar, 1.tar, ...                  members k.jpg (or .png, .webp, ...) with k.cls, a
                                                   number, or k.txt, a caption per line
        <split>/nshards.txt                        the number of shards; default: all that exist
        dataset_type.txt                           classification or retrieval; without it, a split
                                                   with any .cls is classification

    Incomplete samples, and those after a break in an archive, are counted in `skipped`; see
    TarDataset.

    Raises MissingData for a split or a shard that does not exist; ValueError for labels beyond
    classnames.txt, shards without a usable sample and files of other contents than above.
    """
    shards = _shards(folder, split)
    kind = _kind(folder)
    dataset = TarDataset(shards, labelled=kind == CLASSIFICATION, one_per_line=True)
    if kind is None and dataset.has_labels:
        dataset = TarDataset(shards, labelled=True)
    dataset.name = folder.resolve().name
    if not len(dataset):
        kind = RETRIEVAL if dataset.labels is None else CLASSIFICATION
        raise ValueError(
            f"the shards of {folder / split} have no sample for {kind} that can be used: "
            f"{dataset.skipped}"
        )
    if dataset.labels is not None:
        _name_classes(folder, dataset)
    return dataset


def _name_classes(folder: Path, dataset: TarDataset) -> None:
    file = folder / CLASS_NAMES_FILE
    if not file.is_file():
        raise MissingData(f"{file} does not exist; its line k must name the class of label k")
    dataset.class_names = names = read_names(file)
    assert dataset.labels is not None
    largest = int(dataset.labels.argmax())
    if int(dataset.labels[largest]) >= len(names):
        raise ValueError(
            f"{dataset.where(largest)}: label {dataset.labels[largest]}, but {file} has "
            f"{len(names)} lines and so names 0 .. {len(names) - 1}"
        )
    templates = folder / TEMPLATES_FILE
    if templates.is_file():
        dataset.templates = read_templates(templates)


def _kind(folder: Path) -> str | None:
    file = folder / KIND_FILE
    if not file.is_file():
        return None
    kind = " ".join(read_lines(file)).lower()
    if kind not in (CLASSIFICATION, RETRIEVAL):
        raise ValueError(f"{file} must say {CLASSIFICATION} or {RETRIEVAL}, got {kind!r}")
    return kind


def _shards(folder: Path, split: str) -> list[Path]:
    place = folder / split
    if not place.is_dir():
        raise MissingData(
            f"{place} is not there; a webdataset for evaluation has its shards in {split}/0.tar, "
            f"{split}/1.tar, ... and their number in {split}/{SHARDS_FILE}"
        )
    file = place / SHARDS_FILE
    if not file.is_file():
        found = sorted(path for path in place.glob("*.tar") if not path.name.startswith("."))
        if not found:
            raise MissingData(f"{place} has neither 0.tar, 1.tar, ... nor {SHARDS_FILE}")
        return _without_gaps(place, found)
    lines = read_lines(file)
    if len(lines) != 1 or not lines[0].isdecimal() or int(lines[0]) < 1:
        raise ValueError(f"{file} must hold the number of shards, 1 or more, got {lines[:3]}")
    shards = [place / f"{number}.tar" for number in range(int(lines[0]))]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise MissingData(
            f"{len(missing)} of the {len(shards)} shards that {file} counts are not there: "
            f"{', '.join(missing[:5])}; results would be those of another set"
        )
    return shards


def _without_gaps(place: Path, found: list[Path]) -> list[Path]:
    """Return the shards in the order of their numbers, if all have one, else of their names."""
    if not all(path.stem.isdecimal() for path in found):
        return found
    numbers = sorted(int(path.stem) for path in found)
    missing = sorted({*range(numbers[0], numbers[-1])} - {*numbers})
    if missing or len({*numbers}) < len(numbers):
        what = f"no {missing[0]}.tar" if missing else "two shards of one number"
        raise MissingData(
            f"{place} has the shards {numbers[0]} to {numbers[-1]}, but {what}: results would be "
            f"those of another set. Add it, or write the number of shards to {SHARDS_FILE}"
        )
    return sorted(found, key=lambda path: int(path.stem))
