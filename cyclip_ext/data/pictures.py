"""Small sets held in memory as one uint8 array, with classes, domains and a coarse hierarchy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .images import on_white, open_image, square_rgba
from .records import BadRecord, Pairs, Record, SkipReport


@dataclass(frozen=True)
class Classes:
    """What zero-shot classification chooses among, with two coarser levels above it.

    names: one canonical caption per class, [C].
    subgroup_of_class: int64 [C], index into subgroup_names [S].
    group_of_subgroup: int64 [S], index into group_names [G].
    """

    names: tuple[str, ...]
    subgroup_of_class: Tensor
    subgroup_names: tuple[str, ...]
    group_of_subgroup: Tensor
    group_names: tuple[str, ...]

    @property
    def group_of_class(self) -> Tensor:
        """int64 [C], index into group_names."""
        return self.group_of_subgroup[self.subgroup_of_class]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(cls, triples: Sequence[tuple[str, str, str]]) -> Classes:
        """From (name, subgroup, group) per class; levels are numbered in order of appearance.

        Raises ValueError where a name repeats or a subgroup belongs to two groups: predictions
        could then not be scored.
        """
        names = tuple(name for name, _, _ in triples)
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"class names must be unique; repeated: {repeated[:5]}")
        group_of: dict[str, str] = {}
        for _, subgroup, group in triples:
            first = group_of.setdefault(subgroup, group)
            if first != group:
                raise ValueError(f"subgroup {subgroup!r} belongs to {first!r} and to {group!r}")
        subgroups = {name: i for i, name in enumerate(group_of)}
        groups = {name: i for i, name in enumerate(dict.fromkeys(group_of.values()))}
        return cls(
            names=names,
            subgroup_of_class=torch.tensor([subgroups[subgroup] for _, subgroup, _ in triples]),
            subgroup_names=tuple(subgroups),
            group_of_subgroup=torch.tensor([groups[group] for group in group_of.values()]),
            group_names=tuple(groups),
        )


class MemoryPairs(Pairs):
    """Pictures with captions, all decoded and in memory."""

    def __init__(
        self,
        source: str,
        images: Tensor,  # uint8 [n, 4, size, size], RGBA with straight alpha
        captions: tuple[tuple[str, ...], ...],  # [n], the first of each is the canonical one
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 4:
            raise ValueError(
                f"images must be uint8 [n, 4, s, s], got {images.dtype} {[*images.shape]}"
            )
        if len(images) != len(captions):
            raise ValueError(f"got {len(images)} images but {len(captions)} captions")
        self.source = source
        self.images = images
        self.captions = captions
        self.skipped = SkipReport()

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> Record:
        """Record `index` as a file would give it: RGB, transparency composited onto white."""
        array = self.images[index].permute(1, 2, 0).contiguous().numpy()
        image = on_white(Image.fromarray(array))
        return Record(image, self.captions[index], f"{self.source}[{index}]")

    def part(self, indices: npt.NDArray[np.int64]) -> MemoryPairs:
        """Some of the pictures with their captions, still in memory."""
        captions = tuple(self.captions[index] for index in indices)
        return MemoryPairs(self.source, self.images[torch.from_numpy(indices)], captions)


class PictureSet(MemoryPairs):
    """Pictures in memory with class labels and domains (vendor, drawing style)."""

    def __init__(
        self,
        source: str,
        images: Tensor,  # uint8 [n, 4, size, size]
        captions: tuple[tuple[str, ...], ...],  # [n]
        labels: Tensor,  # int64 [n], index into classes
        classes: Classes,
        domains: Tensor,  # int64 [n], index into domain_names
        domain_names: tuple[str, ...],
    ) -> None:
        super().__init__(source, images, captions)
        if not len(images) == len(labels) == len(domains):
            raise ValueError(
                f"got {len(images)} images, {len(labels)} labels and {len(domains)} domains"
            )
        self.labels = labels
        self.classes = classes
        self.domains = domains
        self.domain_names = domain_names

    def captions_of_class(self) -> tuple[tuple[str, ...], ...]:
        """All captions of each class, canonical first, [C]: a prompt ensemble.

        A class without a picture in this set has its name alone.
        """
        found: dict[int, tuple[str, ...]] = {}
        for label, captions in zip(self.labels.tolist(), self.captions, strict=True):
            found.setdefault(label, captions)
        return tuple(found.get(i, (name,)) for i, name in enumerate(self.classes.names))


@dataclass(frozen=True)
class PictureData:
    """A training set with the evaluation sets that belong to it.

    evaluation holds, for every data set of this kind:
        in_domain            training domains, trained classes, pictures withheld from training
        validation           trained classes in the validation domain: choose settings here
        shifted              trained classes in the test domains: report this
        heldout_in_domain    classes never trained on, training domains
        heldout_validation   classes never trained on, validation domain
        heldout_shifted      classes never trained on, test domains
    """

    name: str
    train: MemoryPairs
    evaluation: dict[str, PictureSet]
    skipped: SkipReport = field(default_factory=SkipReport)

    def describe(self) -> str:
        """Counts per set and what was dropped, as lines for the log."""
        lines = [
            f"{self.name}: {len(self.train):,} training pictures with "
            f"{sum(map(len, self.train.captions)):,} captions"
        ]
        for name, pictures in self.evaluation.items():
            domains = ", ".join(
                f"{domain} {int((pictures.domains == i).sum()):,}"
                for i, domain in enumerate(pictures.domain_names)
            )
            lines.append(
                f"  {name:<19} {len(pictures):>6,} pictures, "
                f"{len(pictures.classes):>5,} classes  ({domains})"
            )
        lines.append(f"  {self.skipped}")
        return "\n".join(lines)


def decode_squares(
    sources: Sequence[tuple[str, Path | bytes]], size: int, skipped: SkipReport
) -> tuple[list[int], Tensor]:
    """Decode pictures, (name for messages, file) each, to one array, with all cores.

    Returns the positions in `sources` of those that could be decoded and their pictures, uint8
    [n, 4, size, size]; the others are added to `skipped`.
    """

    def decode(source: tuple[str, Path | bytes]) -> npt.NDArray[np.uint8] | BadRecord:
        where, file = source
        try:
            return square_rgba(open_image(file, where, keep_alpha=True), size)
        except BadRecord as bad:
            return bad

    kept: list[int] = []
    images = torch.empty(len(sources), 4, size, size, dtype=torch.uint8)
    # Threads suffice: Pillow decodes and resizes without holding the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for position, result in enumerate(pool.map(decode, sources)):
            if isinstance(result, BadRecord):
                skipped.add(result.reason, result.where)
            else:
                images[len(kept)] = torch.tensor(result)
                kept.append(position)
    return kept, images[: len(kept)]
