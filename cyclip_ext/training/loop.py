"""The steps of a run: forward, loss, backward, log, validate, save."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data import Augment, Batch, make_loader
from ..models import CreatedModel
from .assess import SELECTION_METRIC, Assessor
from .checkpoint import BEST, LAST, save_checkpoint
from .config import TrainConfig
from .objective import make_loss, term_weights
from .optim import (
    clamp_logit_scale,
    fix_logit_scale,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from .precision import autocast_for, choose_device, choose_precision
from .report import MetricsLog
from .sources import RunData

LOG_EVERY = 10  # steps


class DivergedError(RuntimeError):
    """The loss is not a finite number; the message has the step and every term."""


class Trainer:
    """One run. `fit` trains from wherever the state stands to the end, or to an interruption.

    A run is a function of its settings and data: order, captions and augmentation come from
    (seed, epoch, sample), so that a resumed run takes the very steps an uninterrupted one takes.
    """

    def __init__(
        self, config: TrainConfig, data: RunData, created: CreatedModel, folder: Path
    ) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.device = choose_device(config.run.device)
        self.precision = choose_precision(config.run.precision, self.device)
        self.autocast = autocast_for(self.precision, self.device)
        self.created = created
        self.model: Any = created.model.to(self.device)
        if config.optim.logit_scale_fixed is not None:
            fix_logit_scale(self.model, config.optim.logit_scale_fixed)
        self.loss = make_loss(config.loss)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.loader = make_loader(
            data.train,
            config.data.batch_size,
            created.image_size,
            seed=config.run.seed,
            augment=Augment() if data.pictures is not None else None,
            workers=config.data.workers,
        )
        self.assessor = Assessor(created, self.device, self.autocast, notify=tqdm.write)
        self.epoch = 0
        self.step_in_epoch = 0
        self.best = -math.inf
        self.validation_due = False  # an epoch is complete and saved, but not yet measured
        self.interrupted = False
        self.log = MetricsLog(folder / "metrics.jsonl")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return len(self.loader)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.run.epochs

    @property
    def step(self) -> int:
        """Steps taken since the run's beginning."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def logit_scale(self) -> float:
        """The current scale of the logits, exponentiated: 1 / temperature."""
        scale: float = self.model.logit_scale.exp().item()
        return scale

    def fit(self) -> bool:
        """Train to the end: True. False after an interruption; `last.pt` is then up to date."""
        with _interruptible(self), self._progress() as progress:
            if self.validation_due:
                self._validate(progress)
            while self.epoch < self.config.run.epochs:
                self._train_epoch(progress)
                if self.interrupted:
                    self.save()
                    return False
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self.validation_due = (
                    self.epoch % self.config.run.val_frequency == 0 or self._finished()
                )
                self.save()  # before validating: an error there must not cost the epoch
                if self.validation_due:
                    self._validate(progress)
        return True

    def _finished(self) -> bool:
        return self.epoch == self.config.run.epochs

    def _train_epoch(self, progress: tqdm[Any]) -> None:
        self.model.train()
        window = _Window(self.config)
        for batch in self.loader.epoch(self.epoch, start=self.step_in_epoch):
            if batch is None:  # no record of it could be read: a step that is not taken, yet counts
                self.step_in_epoch += 1
                progress.update()
                if self.interrupted:
                    return
                continue
            rate = learning_rate(self.step, self.total_steps, self.config.optim)
            terms = self._train_step(batch, rate)
            self.step_in_epoch += 1
            window.add(terms, len(batch.texts))
            progress.update()
            if self.step % LOG_EVERY == 0 or self.step_in_epoch == self.steps_per_epoch:
                record = window.record() | {
                    "logit_scale": self.logit_scale,
                    "lr": rate,
                }
                self.log.write("train", self.step, epoch=self.epoch, **record)
                progress.set_postfix_str(_shown(record))
                window = _Window(self.config)
            if self.interrupted:
                return

    def _train_step(self, batch: Batch, rate: float) -> dict[str, float]:
        """One optimizer step; the weighted loss terms."""
        set_learning_rate(self.optimizer, rate)
        images = batch.images.to(self.device, non_blocking=True)
        tokens = self.created.tokenizer(batch.texts).to(self.device, non_blocking=True)
        with self.autocast():
            image_features = self.model.encode_image(images)
            text_features = self.model.encode_text(tokens)
        # Raw features, float32 from here on: the losses normalize without rounding to bfloat16.
        terms: dict[str, Tensor] = self.loss(
            image_features.float(),
            text_features.float(),
            self.model.logit_scale.exp(),
            getattr(self.model, "logit_bias", None),
            output_dict=True,
        )
        total = torch.stack(list(terms.values())).sum()
        values = {name: value.item() for name, value in terms.items()}
        if not math.isfinite(sum(values.values())):
            listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise DivergedError(
                f"the loss is not finite at step {self.step} (epoch {self.epoch}, learning rate "
                f"{rate:g}): {listed}; logit scale {self.logit_scale:g}. "
                "Try a lower --lr or a longer --warmup; the last checkpoint is older than this step"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        clamp_logit_scale(self.model)
        return values

    def _validate(self, progress: tqdm[Any]) -> None:
        """Measure, keep the best weights, and save that it is done."""
        metrics = self.assessor.validate(self.data)
        self.log.write("validation", self.step, epoch=self.epoch, **metrics)
        score = metrics[SELECTION_METRIC[self.data.pictures is not None]]
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
        progress.write(f"  epoch {self.epoch:>3}  validation: {shown}")
        if score > self.best:
            self.best = score
            # For use, not to continue from: no optimizer, a third of the size.
            state = {"config": self.config.to_dict(), "model": self.model.state_dict()}
            save_checkpoint(self.folder / "checkpoints" / BEST, state)
        self.validation_due = False
        self.save()

    def save(self) -> None:
        """Write the whole state to checkpoints/last.pt."""
        save_checkpoint(
            self.folder / "checkpoints" / LAST,
            {
                "config": self.config.to_dict(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),  # nothing here draws from it, but a model may
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "best": self.best,
                "validation_due": self.validation_due,
            },
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `save` wrote.

        Raises ValueError for a checkpoint of weights only, such as best.pt.
        """
        if "optimizer" not in state:
            raise ValueError("this checkpoint holds weights only (best.pt): continue from last.pt")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.best = state["best"]
        self.validation_due = state.get("validation_due", False)
        self.log.truncate(self.step)

    def _progress(self) -> tqdm[Any]:
        return tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=self.config.label(),
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )


def _shown(record: dict[str, float]) -> str:
    """Weighted loss terms, temperature and speed, for the progress bar."""
    terms = [
        f"{name.removesuffix('_loss').replace('_', '-')} {value:.3f}"
        for name, value in record.items()
        if name.endswith("_loss")
    ]
    scale, speed = record["logit_scale"], record["images_per_second"]
    return f"{' + '.join(terms)}, scale {scale:.1f}, {speed:.0f} images/s"


class _Window:
    """Means over the steps since the last record."""

    def __init__(self, config: TrainConfig) -> None:
        self.weights = term_weights(config.loss)
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.images = 0
        self.start = time.perf_counter()

    def add(self, terms: dict[str, float], images: int) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.images += images

    def record(self) -> dict[str, float]:
        """loss, each term weighted, and raw as <term>_raw where its weight is not 1."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        raw = {
            f"{name}_raw": means[name] / weight
            for name, weight in self.weights.items()
            if weight != 1 and name in means
        }
        speed = self.images / (time.perf_counter() - self.start)
        return {"loss": sum(means.values()), **means, **raw, "images_per_second": speed}


@contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C ends the run after the current step; a second one at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        trainer.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        former = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: signals are somebody else's there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
