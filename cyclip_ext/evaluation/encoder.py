"""A model with its tokenizer and transform, as evaluation uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from .._output import counted
from ..data.captions import shorten
from ..models.trained import TrainedModel
from .embeddings import NotFiniteError

BATCH = 256  # images
TEXT_BATCH = 512


class TwoTowers(Protocol):
    """The part of a model that evaluation uses; open_clip's models have it."""

    training: bool

    def encode_image(self, image: Tensor) -> Tensor: ...

    def encode_text(self, text: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is cuda if there is a GPU, else the CPU.

    Raises ValueError if this machine has no such device, and for "meta", whose tensors have no
    data.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used: {reason}; try --device auto") from error
    if device.type == "meta":
        raise ValueError(
            f"--device {name} cannot be used: its tensors have no data; try --device auto"
        )
    return device


@dataclass(frozen=True)
class Encoder:
    """A model with its tokenizer and preprocessing, which embeds images and texts.

    Attributes:
        model: The two towers. They are in evaluation mode while they encode, and return to their
            former mode.
        tokenizer: Function from a list of texts to tokens.
        image_size: Width of the square images that the model takes, in pixels.
        device: Where the model is.
        autocast: Makes the context of reduced precision for the image tower. Embeddings are
            normalized in float32 either way.
        transform: Preprocessing of one RGB image, to [3, image_size, image_size]; threads call it.
            None for this package's own, file_transform, or render for datasets in memory.
        batch_size: Images in a batch.
        progress: Whether to show progress bars.
        notify: Called with lines for the user.
    """

    model: TwoTowers
    tokenizer: Callable[[list[str]], Tensor]
    image_size: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    transform: Callable[[Image.Image], Tensor] | None = None
    batch_size: int = BATCH
    progress: bool = False
    notify: Callable[[str], None] = print

    @classmethod
    def of(cls, trained: TrainedModel, device: torch.device, **options: Any) -> Encoder:
        """Build an Encoder from a loaded model, moving the model to the device."""
        created = trained.created
        towers: Any = created.model.to(device)
        return cls(
            towers,
            created.tokenizer,
            created.image_size,
            device,
            transform=trained.transform,
            **options,
        )

    @property
    def logit_scale(self) -> float | None:
        """Factor of the logits, if the model has one."""
        scale = getattr(self.model, "logit_scale", None)
        return None if scale is None else float(scale.detach().exp())

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length float32 embeddings [len(texts), d] on the CPU."""
        short = [shorten(text) for text in texts]
        cut = sum(one != other for one, other in zip(short, texts, strict=True))
        if cut:
            self.notify(
                f"{counted(cut, 'text')} cut before tokenizing: too long, or with too long a word"
            )
        rows = []
        with _evaluating(self.model):
            for start in range(0, len(short), TEXT_BATCH):
                tokens = self.tokenizer(short[start : start + TEXT_BATCH]).to(self.device)
                rows.append(_unit("text", self.model.encode_text(tokens)))
        return torch.cat(rows)

    def images(self, batches: Iterable[Tensor]) -> Tensor:
        """Return unit-length float32 embeddings [n, d] on the CPU of batches [b, 3, h, w]."""
        rows = []
        with _evaluating(self.model):
            for batch in batches:
                with self.autocast():
                    features = self.model.encode_image(batch.to(self.device))
                rows.append(_unit("image", features))
        return torch.cat(rows)


def _unit(tower: str, features: Tensor) -> Tensor:
    """Normalize embeddings in float32, on the CPU. Raises NotFiniteError for NaN and infinity."""
    rows = normalize(features.float(), dim=-1).cpu()
    if not rows.isfinite().all():
        raise NotFiniteError(
            f"the model's {tower} embeddings have NaN or infinity: its weights have diverged, or "
            "reduced precision overflows; evaluate an earlier checkpoint, or in float32"
        )
    return rows


@contextmanager
def _evaluating(model: TwoTowers) -> Iterator[None]:
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
