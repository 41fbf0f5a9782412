"""evaluation/ applied to a run: which metric on which of its sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import BadRecord, ImageDataset, SkipReport
from ..data.transforms import file_transform
from ..evaluation import embed_images, retrieval_metrics
from ..evaluation.encoder import BATCH, Encoder
from ..evaluation.pictures import Metrics, evaluate_pictures, validate_pictures
from ..models import CreatedModel
from .sources import RunData

# What "best" means: validation data only, never the test sets.
SELECTION_METRIC = {True: "acc1", False: "text_retrieval_recall@1"}


@dataclass(frozen=True)
class Assessor:
    """Measures one model.

    autocast: precision context of the image tower, see precision.py. notify: shows a line.
    """

    created: CreatedModel
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    notify: Callable[[str], None] = print

    @property
    def encoder(self) -> Encoder:
        """The model as evaluation takes it."""
        created = self.created
        towers: Any = created.model
        return Encoder(towers, created.tokenizer, created.image_size, self.device, self.autocast)

    def validate(self, data: RunData) -> Metrics:
        """The quick measurement between epochs, on the validation set alone."""
        if data.pictures is not None:
            return validate_pictures(self.encoder, data.pictures)
        assert data.validation is not None
        return self.retrieve_pairs(data.validation)

    def evaluate(self, data: RunData) -> dict[str, Metrics]:
        """Everything, set by set."""
        if data.pictures is not None:
            return evaluate_pictures(self.encoder, data.pictures)
        assert data.validation is not None
        return {"validation": self.retrieve_pairs(data.validation)}

    def retrieve_pairs(self, pairs: ImageDataset) -> Metrics:
        """Retrieval among pairs from files; unreadable ones are left out, counted and shown.

        Raises ValueError where none can be read.
        """
        transform = file_transform(self.created.image_size)
        captions: list[tuple[str, ...]] = []
        skipped = SkipReport()

        def batches() -> Iterator[Tensor]:
            pending = []
            for index in range(len(pairs)):
                try:
                    record = pairs[index]
                except BadRecord as bad:
                    skipped.add(bad.reason, bad.where)
                    continue
                captions.append(record.captions)
                pending.append(transform(record.image))
                if len(pending) == BATCH:
                    yield torch.stack(pending).to(self.device)
                    pending = []
            if not captions:
                raise ValueError(f"no record of {pairs.name} can be read: {skipped}")
            if pending:
                yield torch.stack(pending).to(self.device)

        encoder = self.encoder
        images = embed_images(encoder.model, batches(), autocast=self.autocast)
        if skipped.total:
            self.notify(f"  validation data: {skipped}")
        texts = [text for entry in captions for text in entry]
        owners = [i for i, entry in enumerate(captions) for _ in entry]
        return retrieval_metrics(
            images, encoder.texts(texts), torch.arange(len(images)), torch.tensor(owners)
        )
