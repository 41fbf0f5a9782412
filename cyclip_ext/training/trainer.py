"""The loop of a run: batches, steps, log records, validation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.profiler import profile
from tqdm import tqdm

from ..data import Augment, Batch, Loader, SkipReport, require_usable
from ..evaluation import Encoder
from ..models import CreatedModel, synchronize_batch_norm
from ..models.locking import train_unlocked
from .assess import SELECTION_METRIC, Assessor
from .checkpoint import Checkpoints, State
from .config import TrainConfig
from .data import RunData
from .duplicates import group_labels
from .folder import require_same_run
from .logging import MetricsLog, Tracker, Window, one_line, profiler, progress_bar
from .objective import ObjectiveFactory, make_objective
from .optim import hold_constant
from .precision import autocast_for, choose_device, choose_precision
from .ranks import ALONE, Ranks
from .step import DivergedError, Feeder, Stepper, StepResult, report_not_finite, restore_modules
from .stopping import StopRequest, listening_for_stop

UNEVEN = "in a step that the ranks could not take together"
ENOUGH_RECORDS = 1000  # before the share of bad ones is judged


class Trainer:
    """One run, on this process's rank. `fit` trains from the current state to the end.

    A run is a function of its settings and data: order, captions and augmentation come from
    (seed, epoch, sample), the model's draws from (seed, step, rank). A resumed run therefore takes
    the same steps as an uninterrupted one. All ranks call the same methods at the same time.

    objective: makes the loss; a custom one needs no setting (docs/training.md).
    """

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        created: CreatedModel,
        folder: Path,
        ranks: Ranks = ALONE,
        objective: ObjectiveFactory = make_objective,
    ) -> None:
        self.config = config
        self.data = data
        self.created = created
        self.folder = folder
        self.ranks = ranks
        self.device = choose_device(config.run.device)
        self.precision = choose_precision(config.run.precision, self.device)
        self.objective = objective(config, self.global_batch, ranks.group)
        self.model, self.ema = self._make_model()
        self.stepper = Stepper(
            config,
            self.model,
            self.ema,
            self.objective,
            autocast_for(self.precision, self.device),
            self.precision,
            self.device,
            ranks,
        )
        self.feeder = Feeder(self.device)
        self.loader = self._make_loader()
        self.assessor = Assessor(self._make_encoder())
        self.checkpoints = Checkpoints(folder)
        self.epoch = 0
        self.step_in_epoch = 0
        self.step_offset = 0  # not 0 if epochs before were of other data, and had other steps
        self.best = -math.inf
        self.validation_due = False  # an epoch is complete and saved, but not yet validated
        # Records that were not used, and captions that were cut before tokenizing, over all ranks,
        # of the epoch that was counted last.
        self.skipped, self.shortened = SkipReport(), 0
        self.counted_before = (SkipReport(), 0)  # in the epoch, before this process continued it
        self.counted = (SkipReport(), 0)  # in the epoch's steps of this process, on this rank
        self.skipped_steps = 0  # steps that were not finite, under skip_nonfinite
        self.stop = StopRequest()
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of training, before this process continued it
        self.window = Window(self.objective.weights)
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.trackers: list[Tracker] = [self.log]

    def _make_model(self) -> tuple[Any, AveragedModel | None]:
        """Return the model that is trained, and its moving average."""
        config, model = self.config, self.created.model.to(self.device)
        hold_constant(model, config, learns_temperature=self.objective.learns_temperature)
        # Before batch norm holds a process group, which cannot be copied.
        ema = None
        if config.optim.ema_decay is not None:
            average = get_ema_multi_avg_fn(config.optim.ema_decay)
            ema = AveragedModel(model, multi_avg_fn=average)
        if config.run.grad_checkpointing:
            cast(Any, model).set_grad_checkpointing(True)
        if config.run.use_bn_sync and self.ranks.group is not None:
            model = synchronize_batch_norm(model, self.ranks.group)
        return model, ema

    def _make_encoder(self) -> Encoder:
        """Return the encoder of the evaluated model: the moving average if there is one."""
        evaluated = self.created.model if self.ema is None else self.ema.module
        return Encoder(
            evaluated,  # type: ignore[arg-type]  # with the two towers that the protocol names
            self.created.tokenizer,
            self.created.image_size,
            self.device,
            autocast_for(self.precision, self.device),
            notify=tqdm.write,
        )

    def _make_loader(self) -> Loader:
        config = self.config
        if self.global_batch > len(self.data.train):
            raise ValueError(
                f"a step takes {self.global_batch:,} pairs (--batch-size times --accum-freq times "
                f"the number of processes), but {self.data.train.name} has "
                f"{len(self.data.train):,} training pairs; lower one of the three"
            )
        return Loader(
            self.data.train,
            config.data.pairs_per_step,
            self.created.image_size,
            seed=config.run.seed,
            augment=Augment() if self.data.splits is not None else None,
            workers=config.data.workers,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            views=2 if config.loss.two_views else 1,
            tokenize=self.created.tokenizer,
            hashes=config.loss.mask_duplicates,
            pin_memory=self.device.type == "cuda",
        )

    @property
    def global_batch(self) -> int:
        """Pairs in a step of all ranks together."""
        return self.config.data.pairs_per_step * self.ranks.size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return len(self.loader)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.step_offset + self.steps_per_epoch * self.config.run.epochs

    @property
    def step(self) -> int:
        """Steps taken since the run's beginning."""
        return self.step_offset + self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def seconds(self) -> float:
        """Time spent in `fit`, by this process and those whose run it continues."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def logit_scale(self) -> float:
        """The current scale of the logits, exponentiated: 1 / temperature."""
        scale: float = self.model.logit_scale.exp().item()
        return scale

    def fit(self) -> bool:
        """Train to the end and return True, or False after an interruption, with `last.pt` saved.

        Raises DivergedError if loss or gradient are not finite, TooManyBadRecords if too much of
        the data cannot be read.
        """
        self.started = time.perf_counter()
        profiled = self.config.run.profile if self.ranks.is_main else None
        with (
            listening_for_stop(self.ranks.size) as self.stop,
            progress_bar(
                self.total_steps, self.step, self.objective.label, self.ranks.is_main
            ) as progress,
            profiler(profiled, self.folder / "profile.json") as profile,
        ):
            if self.validation_due:
                self._validate(progress)
            while self.epoch < self.config.run.epochs:
                if not self._train_epoch(progress, profile):
                    self.save()
                    return False
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self._finish_epoch(progress)
        return True

    def _train_epoch(self, progress: tqdm[Any], profile: profile | None) -> bool:
        """Train the rest of an epoch; False if a rank was asked to stop."""
        train_unlocked(self.model)
        self.window = Window(self.objective.weights)
        self.counted = (SkipReport(), 0)
        batches = self.loader.epoch(self.epoch, start=self.step_in_epoch)
        while self.step_in_epoch < self.steps_per_epoch:
            before = time.perf_counter()
            batch = next(batches)
            self.window.waited += time.perf_counter() - before
            pairs = 0 if batch is None else len(batch)
            # The ranks agree before any of them begins a step that needs all of them.
            parts = -(-pairs // self.config.data.batch_size)
            stop, images, bad, *ranks_of_parts = self.ranks.sums(
                [
                    *(int(bool(self.stop)), pairs, self.loader.skipped.judged),
                    *(int(parts == number) for number in range(self.config.data.accum_freq + 1)),
                ]
            )
            if stop:
                return False
            # If the ranks cannot take the step together, it is not taken, but counts.
            if batch is not None and self._fits(ranks_of_parts):
                self.window.images += images
                self._take_step(batch)
            elif batch is not None:
                where = f"step {self.step}, rank {self.ranks.rank}"
                self.loader.skipped.add(UNEVEN, where, pairs)
            self.step_in_epoch += 1
            self.counted = (self.loader.skipped, self.loader.shortened)
            seen = self.step_in_epoch * self.global_batch
            bad += self.counted_before[0].judged
            if seen >= ENOUGH_RECORDS and bad > self.config.data.max_skipped * seen:
                self._count()
                self._require_usable(seen)
            progress.update()
            self._log(progress)
            if _due(self.step, self.config.run.evaluate_frequency) and self.step < self.total_steps:
                before = time.perf_counter()
                self._evaluate()
                train_unlocked(self.model)
                self.window.start += time.perf_counter() - before  # the speed logged is training's
            due = _due(self.step, self.config.run.save_frequency)
            if due and self.step_in_epoch < self.steps_per_epoch:  # at the end it is saved anyway
                self.save()
            if profile is not None:
                profile.step()
        self._report_records(progress)
        return True

    def _report_records(self, progress: tqdm[Any]) -> None:
        """Report the epoch's skipped records and cut captions; raise if too many are bad."""
        self._count()
        self.counted_before = (SkipReport(), 0)
        if self.skipped.total:
            if self.ranks.is_main:
                progress.write(f"  epoch {self.epoch + 1:>3}  training data: {self.skipped}")
            self.track("skipped", part="training", epoch=self.epoch, **self.skipped.to_dict())
        self._require_usable(self.steps_per_epoch * self.global_batch)
        if self.shortened:
            self.track("shortened", epoch=self.epoch, captions=self.shortened)

    def _fits(self, ranks_of_parts: Sequence[int]) -> bool:
        """Return whether the ranks can take a step together; [p]: ranks with p parts of pairs.

        See cached_backward. Synchronized batch norm needs as many forward passes of each rank.
        """
        none, single = ranks_of_parts[:2]
        several = not single and not self.config.run.use_bn_sync
        return not none and (several or self.ranks.size in ranks_of_parts)

    def _take_step(self, batch: Batch) -> None:
        """Launch a step, then account for the one before it."""
        labels = None
        if batch.hashes is not None:
            labels = group_labels(self.ranks.gathered((batch.hashes, len(batch))), self.ranks.rank)
        inputs = self.feeder(batch, labels)
        self._account(self.stepper.launch(inputs, self.step, self.total_steps))

    def _settle(self) -> None:
        """Wait for the pending step and account for it."""
        self._account(self.stepper.settle())

    def _account(self, result: StepResult | None) -> None:
        """Add the numbers of a step to the window.

        If the step was not finite, write its contents to a file, and raise an error unless such
        steps are skipped.
        """
        if result is None:
            return
        if result.wait():
            # The temperature is logged as of the record, not as a mean.
            self.window.add(result.names[:-1], result.values[:-1])
            return
        line = report_not_finite(result, self.epoch, self.folder, self.ranks)
        if not self.config.optim.skip_nonfinite:
            raise DivergedError(
                f"{line}. Try a lower --lr, a longer --warmup, --grad-clip-norm 1, or "
                "--skip-nonfinite; the last checkpoint is older than this step"
            )
        self.skipped_steps += 1
        self.ranks.say(f"step skipped: {line}")

    def _count(self) -> None:
        """Add up, over the ranks, the records of this epoch that its steps did not use."""
        self.skipped, self.shortened = SkipReport(), 0
        for skipped, shortened in (self.counted_before, *self.ranks.gathered(self.counted)):
            self.skipped.merge(skipped)
            self.shortened += shortened

    def _require_usable(self, seen: int) -> None:
        name = self.data.train.name
        require_usable(max(seen, 1), self.skipped, self.config.data.max_skipped, name)

    def _log(self, progress: tqdm[Any]) -> None:
        """Log the window if a record is due, and start a new one."""
        due = self.step % self.config.run.log_every_n_steps == 0
        if not (due or self.step_in_epoch == self.steps_per_epoch):
            return
        self._settle()
        record = {
            **self.window.record(),
            "logit_scale": self.logit_scale,
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
        }
        if self.window.steps:
            self.track("train", epoch=self.epoch, **record)
            progress.set_postfix_str(one_line(record))
        self.window = Window(self.objective.weights)

    def track(self, kind: str, **values: Any) -> None:
        """Pass a record to the log and the trackers, on the main rank."""
        if self.ranks.is_main:
            for tracker in self.trackers:
                tracker.write(kind, self.step, values)

    def _finish_epoch(self, progress: tqdm[Any]) -> None:
        """Save, and validate if that is due."""
        run = self.config.run
        self.validation_due = self.epoch % run.val_frequency == 0 or self.epoch == run.epochs
        self.save()  # before validating: an error there must not cost the epoch
        kept = run.keep_frequency is not None and self.epoch % run.keep_frequency == 0
        if kept and self.ranks.is_main:
            self.checkpoints.keep(self.state(), self.epoch)
        if self.validation_due:
            self._validate(progress)

    def _validate(self, progress: tqdm[Any]) -> None:
        """Validate on the main rank, save the best weights, and save that validation is done."""
        self.validation_due = False
        if self.ranks.is_main:
            metrics = self.assessor.validate(self.data)
            self.track("validation", epoch=self.epoch, **metrics)
            listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
            progress.write(f"  epoch {self.epoch:>3}  validation: {listed}")
            skipped = self.assessor.counts.get("validation", {}).get("skipped")
            if skipped:
                self.track("skipped", part="validation", epoch=self.epoch, **skipped)
            score = metrics[SELECTION_METRIC[self.data.splits is not None]]
            if score > self.best:
                self.best = score
                # For use, not to continue from: no optimizer, a third of the size.
                model: Any = self.assessor.encoder.model
                self.checkpoints.save_best(
                    {"config": self.config.to_dict(), "model": model.state_dict()}
                )
        self.save()
        self.ranks.wait()

    def _evaluate(self) -> None:
        """Log the numbers of the final report for the current weights."""
        self._settle()
        if self.ranks.is_main:
            for name, metrics in self.assessor.evaluate(self.data).items():
                self.track("evaluation", dataset=name, **metrics)
        self.ranks.wait()

    def state(self) -> State:
        """Return the state to resume from; loader and dropout are functions of the position."""
        return {
            "config": self.config.to_dict(),
            "objective": self.objective.label,
            "global_batch": self.global_batch,
            "model": self.model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "best": self.best,
            "validation_due": self.validation_due,
            "fingerprints": self.data.fingerprints,
            "skipped": self.skipped.to_dict(),
            "shortened": self.shortened,
            "skipped_steps": self.skipped_steps,
            "seconds": self.seconds,
        }

    def save(self) -> None:
        """Write the state to checkpoints/last.pt, on the main rank."""
        self._settle()
        if self.step_in_epoch:  # else the counts are those of the epoch before
            self._count()
        if self.ranks.is_main:
            self.checkpoints.save_last(self.state())

    def restore(self, state: State) -> None:
        """Continue from a state that `save` wrote, on any number of ranks with the same batch.

        Raises ValueError if objective, batch of all ranks together, data or model differ. Other
        data are accepted under `allow_other_data`.
        """
        changed = require_same_run(
            state,
            objective=self.objective.label,
            pairs=self.global_batch,
            fingerprints=self.data.fingerprints,
            folder=self.folder,
            allow_other_data=self.config.run.allow_other_data,
        )
        restore_modules(state, self.model, self.stepper, self.ema, self.folder)
        self.epoch = state["epoch"]
        self.step_in_epoch = min(state["step_in_epoch"], self.steps_per_epoch)
        self.step_offset += state["step"] - self.step
        self.best = state["best"]
        self.validation_due = state["validation_due"]
        self.skipped, self.shortened = SkipReport.from_dict(state["skipped"]), state["shortened"]
        if self.step_in_epoch:
            self.counted_before = (self.skipped, self.shortened)
        self.skipped_steps = state["skipped_steps"]
        self.seconds_before = state["seconds"]
        if self.ranks.is_main:
            again = {"validation"} if self.validation_due else set()
            if self.step == self.total_steps:
                again.add("evaluation")  # the one at the end
            self.log.truncate(state["step"], again)
        if changed:
            self.ranks.say(f"continuing on other {' and '.join(changed)} records")
            self.track("other_data", changed=changed, **self.data.counts())


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
