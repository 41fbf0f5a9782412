"""Tar shards in CLIP_benchmark's layout: classification (.cls) and retrieval (.txt)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...data import BadRecord, FileDataset, MissingData, SkipReport
from ...data.captions import clean_caption
from ...data.dataset import Encoded, digest
from ...data.images import IMAGE_SUFFIXES
from ...data.tar_format import BrokenTar, Member, read_members
from ..prompts import read_templates
from .names import CLASS_NAMES_FILE, read_lines, read_names

TEMPLATES_FILE = "zeroshot_classification_templates.txt"
SHARDS_FILE = "nshards.txt"
KIND_FILE = "dataset_type.txt"
LABEL_SUFFIX, CAPTION_SUFFIX = ".cls", ".txt"
CLASSIFICATION, RETRIEVAL = "classification", "retrieval"


def open_shards(folder: Path, split: str = "test") -> ShardImages:
    """A webdataset as CLIP_benchmark writes it.

        classnames.txt                             line k is the class of label k
        zeroshot_classification_templates.txt      a template a line, "{c}" for the class; optional
        <split>/0.tar, 1.tar, ...                  members k.jpg (or .png, .webp, ...) with k.cls, a
                                                   number, or k.txt, a caption a line
        <split>/nshards.txt                        how many of them; without it all that are there
        dataset_type.txt                           classification or retrieval; without it a split
                                                   with any .cls is classification

    Samples that are not whole are counted in `skipped`, and so is a break in an archive, together
    with all samples after it as one.

    Raises: MissingData for a split or a shard that is not there; ValueError for labels beyond
    classnames.txt, shards without a sample that can be used and files that say something else than
    above.
    """
    shards = _shards(folder, split)
    skipped = SkipReport()
    samples = [sample for shard in shards for sample in _samples(shard, skipped)]
    kind = _kind(folder) or _kind_of(samples)
    read = _classified if kind == CLASSIFICATION else _captioned
    data = read(folder, samples, skipped)
    if not len(data):
        raise ValueError(
            f"the shards of {folder / split} have no sample for {kind} that can be used: {skipped}"
        )
    return data


def _kind(folder: Path) -> str | None:
    file = folder / KIND_FILE
    if not file.is_file():
        return None
    kind = " ".join(read_lines(file)).lower()
    if kind not in (CLASSIFICATION, RETRIEVAL):
        raise ValueError(f"{file} must say {CLASSIFICATION} or {RETRIEVAL}, got {kind!r}")
    return kind


def _kind_of(samples: list[_Sample]) -> str:
    labelled = any(sample.label is not None for sample in samples)
    return CLASSIFICATION if labelled else RETRIEVAL


def _captioned(folder: Path, samples: list[_Sample], skipped: SkipReport) -> ShardImages:
    captioned: list[_Sample] = []
    captions: list[tuple[str, ...]] = []
    for sample in _whole(samples, CAPTION_SUFFIX, skipped):
        try:
            captions.append(_captions(sample))
            captioned.append(sample)
        except BadRecord as bad:
            skipped.add(bad.reason, bad.where)
    name = folder.resolve().name
    return ShardImages(name, captioned, skipped, captions=captions)


@dataclass
class _Sample:
    """Where the picture of a sample is, and what stands beside it."""

    shard: Path
    key: str
    image: Member | None = None
    label: bytes | None = None
    captions: bytes | None = None

    @property
    def where(self) -> str:
        return f"{self.shard}:{self.key}"


class ShardImages(FileDataset):
    """Images inside tar shards, read when they are accessed."""

    def __init__(
        self,
        name: str,
        samples: list[_Sample],
        skipped: SkipReport,
        *,
        captions: list[tuple[str, ...]] | None = None,
        labels: list[int] | None = None,
        class_names: tuple[str, ...] = (),
        templates: tuple[str, ...] = ("{}",),
    ) -> None:
        self.name = name
        self.skipped = skipped
        self.captions = captions
        self.labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self.class_names = class_names
        self.templates = templates
        self._places = [
            (sample.shard, sample.where, sample.image)
            for sample in samples
            if sample.image is not None
        ]

    def __len__(self) -> int:
        return len(self._places)

    def encoded(self, index: int) -> Encoded:
        """See FileDataset.encoded."""
        shard, where, member = self._places[index]
        try:
            with shard.open("rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except OSError as error:
            raise BadRecord(f"unreadable ({type(error).__name__})", where) from None
        return Encoded(data, where, () if self.captions is None else self.captions[index])

    def fingerprint(self) -> str:
        """See ImageDataset.fingerprint."""
        shards = dict.fromkeys(shard for shard, _, _ in self._places)
        sizes = [(shard.name, shard.stat().st_size) for shard in shards]
        labels = () if self.labels is None else self.labels.tolist()
        return digest(repr((sizes, self.captions, labels, self.class_names)))


def _shards(folder: Path, split: str) -> list[Path]:
    place = folder / split
    if not place.is_dir():
        raise MissingData(
            f"{place} is not there; a webdataset for evaluation has its shards in {split}/0.tar, "
            f"{split}/1.tar, ... and their number in {split}/{SHARDS_FILE}"
        )
    file = place / SHARDS_FILE
    if not file.is_file():
        found = [path for path in place.glob("*.tar") if path.stem.isdecimal()]
        if not found:
            raise MissingData(f"{place} has neither 0.tar, 1.tar, ... nor {SHARDS_FILE}")
        return sorted(found, key=lambda path: int(path.stem))
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


def _samples(shard: Path, skipped: SkipReport) -> Iterator[_Sample]:
    """The samples of a shard in order, whole or not, up to a break in it."""
    sample = _Sample(shard, "")
    try:
        with shard.open("rb") as file:
            for member in read_members(file):
                # webdataset's rule: the key ends at the first dot of the last path component
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not stem or not suffix:  # macOS puts ._name beside each file
                    continue
                if folder + slash + stem != sample.key:
                    if sample.key:
                        yield sample
                    sample = _Sample(shard, folder + slash + stem)
                suffix = (dot + suffix).lower()
                if suffix in IMAGE_SUFFIXES:
                    sample.image = member
                elif suffix in {LABEL_SUFFIX, CAPTION_SUFFIX}:
                    file.seek(member.offset)
                    text = file.read(member.size)
                    if suffix == LABEL_SUFFIX:
                        sample.label = text
                    else:
                        sample.captions = text
    except (BrokenTar, OSError) as broken:
        skipped.add("broken tar", f"{shard}: {broken}; the samples after it are lost")
    if sample.key:
        yield sample


def _whole(samples: list[_Sample], suffix: str, skipped: SkipReport) -> Iterator[_Sample]:
    """The samples that have a picture and a member with `suffix`; the others are counted."""
    for sample in samples:
        text = sample.label if suffix == LABEL_SUFFIX else sample.captions
        if sample.image is None:
            skipped.add("no image file", sample.where)
        elif text is None:
            skipped.add(f"no {suffix} file", sample.where)
        else:
            yield sample


def _classified(folder: Path, samples: list[_Sample], skipped: SkipReport) -> ShardImages:
    file = folder / CLASS_NAMES_FILE
    if not file.is_file():
        raise MissingData(f"{file} is not there; its line k must name the class of label k")
    names = read_names(file)
    kept: list[_Sample] = []
    labels: list[int] = []
    for sample in _whole(samples, LABEL_SUFFIX, skipped):
        text = (sample.label or b"").strip()
        if not text.isdigit():
            skipped.add("broken label", sample.where)
            continue
        label = int(text)
        if label >= len(names):
            raise ValueError(
                f"{sample.where}: label {label}, but {file} has {len(names)} lines and so names "
                f"0 .. {len(names) - 1}"
            )
        kept.append(sample)
        labels.append(label)
    templates = folder / TEMPLATES_FILE
    return ShardImages(
        folder.resolve().name,
        kept,
        skipped,
        labels=labels,
        class_names=names,
        templates=read_templates(templates) if templates.is_file() else ("{}",),
    )


def _captions(sample: _Sample) -> tuple[str, ...]:
    """A caption a line; BadRecord where there is none."""
    try:
        text = (sample.captions or b"").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord("bad encoding", sample.where) from None
    captions = tuple(filter(None, map(clean_caption, text.split("\n"))))
    if not captions:
        raise BadRecord("empty caption", sample.where)
    return captions
