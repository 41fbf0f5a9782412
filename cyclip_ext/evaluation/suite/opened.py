"""Sets that open_set opens, with one model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..composition import quadruple_similarities
from ..embed_sets import Embedded
from ..encoder import Encoder
from ..outcome import Outcome
from ..sets import CaptionedImages, ClassifiedImages, Quadruples
from ..zero_shot import class_embeddings, classify
from . import composition, shift
from .data import CaptionedSet, ClassifiedSet, HierarchyOf, Labelled
from .tasks import TASKS, in_order, of_captions, of_classes

AnySet = ClassifiedImages | CaptionedImages | Quadruples


@dataclass(frozen=True)
class Prompts:
    """What stands in place of a set's own class names and templates.

    names: one or several of each class. templates: see class_embeddings. None: the set's own.
    """

    names: tuple[tuple[str, ...], ...] | None = None
    templates: tuple[str, ...] | None = None

    def shown(self, data: ClassifiedImages) -> tuple[str, ...]:
        """The first name of each class. Raises ValueError for another number of classes."""
        if self.names is None:
            return data.class_names
        if len(self.names) != len(data.class_names):
            raise ValueError(
                f"there are {len(self.names)} class names for the {len(data.class_names)} classes "
                f"of {data.name}"
            )
        return tuple(names[0] for names in self.names)

    def embedded(self, encoder: Encoder, data: ClassifiedImages) -> Tensor:
        """[C, d]."""
        self.shown(data)
        names = self.names or data.class_names
        return class_embeddings(encoder.texts, names, self.templates or data.templates)


def evaluate_sets(
    encoder: Encoder,
    sets: Sequence[AnySet],
    tasks: Collection[str] = TASKS,
    *,
    train: ClassifiedImages | None = None,
    prompts: Prompts | None = None,
    hierarchy_of: HierarchyOf | None = None,
    baselines: shift.Baselines | None = None,
    seed: int = 0,
    notify: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """All sets, one after the other; several with classes are compared, the first being the base.

    train: labelled pictures of the same classes that neighbours and probes learn from.
    hierarchy_of: Hierarchy.build with its table, say. baselines: see suite.shift. Pictures
    that cannot be read are left out and counted in a line to notify.

    Raises ValueError for sets of one name, where train, hierarchy_of or prompts do not fit a set,
    and where nothing can be measured.
    """
    names = [data.name for data in sets]
    if len(set(names)) != len(names):
        raise ValueError(
            f"the sets must have different names, got {', '.join(names)}; rename one, or link to "
            "it under another name"
        )
    prompts = prompts or Prompts()
    learned: Embedded[ClassifiedImages] | None = None
    if train is not None:
        notify(f"embedding {train.name}, to learn from")
        learned = encoder.opened(train)
    outcomes: list[Outcome] = []
    classified: list[ClassifiedSet] = []
    for data in sets:
        notify(f"measuring {data.name}")
        if isinstance(data, ClassifiedImages):
            classified.append(_classified(encoder, data, learned, prompts, hierarchy_of, notify))
            outcomes += of_classes(classified[-1], tasks, seed=seed)
        elif isinstance(data, CaptionedImages):
            outcomes += of_captions(_captioned(encoder, data, notify), tasks, seed=seed)
        elif composition.TASK in tasks:
            outcomes.append(_composed(encoder, data, notify))
    if shift.TASK in tasks and len(classified) > 1:
        outcomes.append(_shift(classified, baselines))
    if not outcomes:
        raise ValueError(f"none of {', '.join(tasks)} can be measured on {', '.join(names)}")
    return in_order(outcomes)


def _classified(
    encoder: Encoder,
    data: ClassifiedImages,
    learned: Embedded[ClassifiedImages] | None,
    prompts: Prompts,
    hierarchy_of: HierarchyOf | None,
    notify: Callable[[str], None],
) -> ClassifiedSet:
    found = encoder.opened(data)
    _tell(found.data, notify)
    names = prompts.shown(data)
    train = None
    if learned is not None:
        if learned.data.class_names != data.class_names:
            raise ValueError(
                f"{learned.data.name} and {data.name} must have the same classes in the same "
                "order, for neighbours and probes to learn from one for the other"
            )
        train = Labelled(learned.image_features, learned.data.labels)
    levels = {}
    if hierarchy_of is not None:
        levels["superclass"] = hierarchy_of(names)
    return ClassifiedSet(
        data.name,
        found.image_features,
        prompts.embedded(encoder, data),
        found.data.labels,
        names,
        train,
        levels,
    )


def _captioned(
    encoder: Encoder, data: CaptionedImages, notify: Callable[[str], None]
) -> CaptionedSet:
    found = encoder.opened(data)
    _tell(found.data, notify)
    return CaptionedSet(
        data.name,
        found.image_features,
        encoder.texts(found.data.texts),
        torch.arange(len(found.image_features)),
        found.data.text_owners,
    )


def _composed(encoder: Encoder, data: Quadruples, notify: Callable[[str], None]) -> Outcome:
    found = encoder.opened(data)
    _tell(found.data, notify)
    first, second = (
        encoder.texts([pair[which] for pair in found.data.captions]) for which in (0, 1)
    )
    similarities = quadruple_similarities(
        found.image_features[:, 0], found.image_features[:, 1], first, second
    )
    return composition.composition(data.name, similarities, found.data.tags)


def _shift(classified: Sequence[ClassifiedSet], baselines: shift.Baselines | None) -> Outcome:
    results = {
        data.name: classify(data.image_features, data.class_features, data.labels)
        for data in classified
    }
    base = classified[0].name
    others = {name: result for name, result in results.items() if name != base}
    return shift.shift(f"{base} and others", (base, results[base]), others, baselines)


def _tell(data: AnySet, notify: Callable[[str], None]) -> None:
    if data.skipped.total:
        notify(f"  {data.name}: {data.skipped}")
