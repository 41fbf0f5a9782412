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


def open_webdataset(folder: Path, split: str = "test") -> TarDataset:
    """Open a webdataset as CLIP_benchmark writes it.

        classnames.txt                             line k is the class of label k
        zeroshot_classification_templates.txt      optional: a template per line with "{c}"
        <split>/0.tar, 1.tar, ...                  members k.jpg (or .png, .webp, ...) with k.cls, a
                                                   number, or k.txt, a caption per line
        <split>/nshards.txt                        number of shards; without it, all that exist
        dataset_type.txt                           classification or retrieval; without it, a split
                                                   with any .cls is classification

    Incomplete samples are counted in `skipped`, and so is a break in an archive.

    Raises:
        MissingData: If the split or a shard is missing.
        ValueError: If a label is not in classnames.txt, no sample can be used, or the contents of a
            file are not as above.
    """
    shards = _shards(folder, split)
    kind = _kind(folder)
    dataset = TarDataset(shards, labelled=kind == CLASSIFICATION, one_per_line=True)
    if kind is None:
        kind = CLASSIFICATION if dataset.has_labels else RETRIEVAL
        if kind == CLASSIFICATION:
            dataset = TarDataset(shards, labelled=True)
    if not len(dataset):
        raise ValueError(
            f"the shards of {folder / split} have no usable sample for {kind}: {dataset.skipped}"
        )
    dataset.name = folder.resolve().name
    if kind != RETRIEVAL:
        _name_classes(dataset, folder)
    return dataset


def _kind(folder: Path) -> str | None:
    file = folder / KIND_FILE
    if not file.exists():
        return None
    kind = " ".join(read_lines(file)).lower()
    if kind not in (CLASSIFICATION, RETRIEVAL):
        raise ValueError(f"{file} must be {CLASSIFICATION} or {RETRIEVAL}, got {kind!r}")
    return kind


def _shards(folder: Path, split: str) -> list[Path]:
    place = folder / split
    if not place.is_dir():
        raise MissingData(
            f"{place} does not exist; a webdataset for evaluation has its shards in {split}/0.tar, "
            f"{split}/1.tar, ... and their number in {split}/{SHARDS_FILE}"
        )
    file = place / SHARDS_FILE
    if not file.exists():
        found = sorted(path for path in place.glob("*.tar") if not path.name.startswith("."))
        if not found:
            raise MissingData(f"{place} has neither 0.tar, 1.tar, ... nor {SHARDS_FILE}")
        return _without_gaps(place, found)
    lines = read_lines(file)
    if len(lines) != 1 or not lines[0].isdecimal() or int(lines[0]) < 1:
        raise ValueError(f"{file} must have the number of shards, 1 or more, got {lines[:3]}")
    shards = [place / f"{number}.tar" for number in range(int(lines[0]))]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise MissingData(
            f"{len(missing)} of the {len(shards)} shards that {file} counts are missing: "
            f"{', '.join(missing[:5])}; without them, the results would be those of another dataset"
        )
    return shards


def _without_gaps(place: Path, found: list[Path]) -> list[Path]:
    """Return the shards in the order of their numbers, if all have one, else of their names."""
    if not all(path.stem.isdecimal() for path in found):
        return found
    numbers = sorted(int(path.stem) for path in found)
    missing = sorted({*range(numbers[0], numbers[-1])} - {*numbers})
    if missing or len({*numbers}) < len(numbers):
        problem = f"number {missing[0]} is missing" if missing else "two have the same number"
        raise MissingData(
            f"{place} has shards {numbers[0]} to {numbers[-1]}, but {problem}: the results would "
            f"be those of another dataset. Add it, or write the number of shards to {SHARDS_FILE}"
        )
    return sorted(found, key=lambda path: int(path.stem))


def _name_classes(dataset: TarDataset, folder: Path) -> None:
    file = folder / CLASS_NAMES_FILE
    if not file.exists():
        raise MissingData(f"{file} does not exist; its line k must name the class of label k")
    names = read_names(file)
    assert dataset.labels is not None
    unnamed = (dataset.labels >= len(names)).nonzero()
    if len(unnamed):
        index = int(unnamed[0])
        raise ValueError(
            f"{dataset.where(index)}: label {int(dataset.labels[index])}, but {file} has "
            f"{len(names)} lines, which name 0 .. {len(names) - 1}"
        )
    dataset.class_names = names
    templates = folder / TEMPLATES_FILE
    if templates.exists():
        dataset.templates = read_templates(templates)
