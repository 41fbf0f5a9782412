"""The steps of a run: forward, loss, backward, log, validate, save."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..data import Augment, Batch, Loader, SkipReport, as_input, require_usable
from ..data.seeding import sample_seed
from ..grad_cache import cached_backward
from ..models import CreatedModel, synchronize_batch_norm
from .assess import SELECTION_METRIC, Assessor
from .checkpoint import Checkpoints, State
from .config import TrainConfig
from .meters import Values, Window, shown
from .objective import make_loss, term_weights
from .optim import (
    clamp_logit_scale,
    fix_logit_scale,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from .precision import autocast_for, choose_device, choose_precision, grad_scaler_for
from .ranks import ALONE, Ranks
from .sources import RunData
from .stopping import StopRequest, listening_for_stop
from .towers import Towers
from .tracking import MetricsLog, Tracker

ENOUGH_RECORDS = 1000  # before the share of bad ones says something

_DROPOUT_STREAM = 0x44524F50  # no draw of the data's shall repeat in the model


class DivergedError(RuntimeError):
    """Loss or gradient are not finite; the message has the step and every term."""


class Trainer:
    """One run, on this process's rank. `fit` trains from wherever the state stands to the end.

    A run is a function of its settings and data: order, captions and augmentation come from
    (seed, epoch, sample), what the model draws from (seed, step, rank), so that a resumed run takes
    the very steps an uninterrupted one takes. All ranks call the same methods at the same time.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        created: CreatedModel,
        folder: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.data = data
        self.created = created
        self.folder = folder
        self.ranks = ranks
        self.device = choose_device(config.run.device)
        self.precision = choose_precision(config.run.precision, self.device)
        self.autocast = autocast_for(self.precision, self.device)
        self.scaler = grad_scaler_for(self.precision, self.device)
        self.model: Any = created.model.to(self.device)
        if config.optim.logit_scale_fixed is not None:
            fix_logit_scale(self.model, config.optim.logit_scale_fixed)
        if config.loss.loss != "siglip" and getattr(self.model, "logit_bias", None) is not None:
            self.model.logit_bias.requires_grad_(False)  # it shifts all logits alike
        if config.loss.loss == "square":
            self.model.logit_scale.requires_grad_(False)  # nothing asks for a temperature
        # Before batch norm holds a process group, which cannot be copied.
        self.ema = _moving_average(self.model, config.optim.ema_decay)
        if config.run.grad_checkpointing:
            cast(Any, self.model).set_grad_checkpointing(True)
        if config.run.use_bn_sync and ranks.group is not None:
            self.model = synchronize_batch_norm(self.model, ranks.group)
        self.towers = self._wrapped_towers()
        self.loss = make_loss(config.loss, self.global_batch, ranks.group)
        self.optimizer = make_optimizer(self.model, config.optim)
        self.loader = Loader(
            data.train,
            config.data.pairs_per_step,
            created.image_size,
            seed=config.run.seed,
            augment=Augment() if data.pictures is not None else None,
            workers=config.data.workers,
            rank=ranks.rank,
            world_size=ranks.size,
            views=2 if config.loss.inmodal else 1,
        )
        measured = created if self.ema is None else replace(created, model=self.ema.module)
        self.assessor = Assessor(measured, self.device, self.autocast, notify=tqdm.write)
        self.checkpoints = Checkpoints(folder)
        self.epoch = 0
        self.step_in_epoch = 0
        self.best = -math.inf
        self.validation_due = False  # an epoch is complete and saved, but not yet measured
        self.left_out = 0  # steps that were not finite, under skip_nonfinite
        self.stop = StopRequest()
        self.started = time.perf_counter()
        self.seconds_before = 0.0  # of training, before this process continued it
        self.log = MetricsLog(folder / "metrics.jsonl")
        self.trackers: list[Tracker] = [self.log]

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
        return self.steps_per_epoch * self.config.run.epochs

    @property
    def step(self) -> int:
        """Steps taken since the run's beginning."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

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
        """Train to the end: True. False after an interruption; `last.pt` is then up to date.

        Raises DivergedError where loss or gradient are not finite, TooManyBadRecords where too much
        of the data cannot be read.
        """
        self.started = time.perf_counter()
        with listening_for_stop(self.ranks.size) as self.stop, self._progress() as progress:
            if self.validation_due:
                self._validate(progress)
            while self.epoch < self.config.run.epochs:
                if not self._train_epoch(progress):
                    self.save()
                    return False
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self._finish_epoch(progress)
        return True

    def _train_epoch(self, progress: tqdm[Any]) -> bool:
        """The rest of an epoch; False where a rank was asked to stop."""
        self.model.train()
        window, seen = self._window(), 0
        batches = self.loader.epoch(self.epoch, start=self.step_in_epoch)
        while self.step_in_epoch < self.steps_per_epoch:
            before = time.perf_counter()
            batch = next(batches)
            window.waited += time.perf_counter() - before
            pairs = 0 if batch is None else len(batch)
            # The ranks agree before any of them begins a step that needs all of them, and as many
            # forward passes of each.
            whole = pairs > self.config.data.batch_size * (self.config.data.accum_freq - 1)
            ready, stop, images, bad = self.ranks.sums(
                [int(whole), int(bool(self.stop)), pairs, self.loader.skipped.judged]
            )
            if stop:
                return False
            seen += self.global_batch
            if seen >= ENOUGH_RECORDS and bad > self.config.data.max_skipped * seen:
                self._require_usable(seen, self._skipped_by_all())
            # A rank that could read no record of a part: a step that is not taken, yet counts.
            if batch is not None and ready == self.ranks.size:
                values = self._train_step(batch)
                if values is not None:
                    window.add(values, images)
            self.step_in_epoch += 1
            progress.update()
            window = self._log(window, progress)
            if _due(self.step, self.config.run.evaluate_frequency) and self.step < self.total_steps:
                before = time.perf_counter()
                self._evaluate()
                window.start += time.perf_counter() - before  # the speed logged is training's
            # At the end of an epoch that is done anyway.
            if _due(self.step, self.config.run.save_frequency) and self.step_in_epoch < len(
                self.loader
            ):
                self.save()
        skipped = self._skipped_by_all()
        if skipped.total:
            progress.write(f"  epoch {self.epoch + 1:>3}  training data: {skipped}")
            self.track("skipped", epoch=self.epoch, **skipped.to_dict())
        self._require_usable(seen, skipped)
        return True

    def _train_step(self, batch: Batch) -> Values | None:
        """One optimizer step; its loss terms and measurements, None if it was left out."""
        optim = self.config.optim
        set_learning_rate(self.optimizer, learning_rate(self.step, self.total_steps, optim))
        images, tokens = self._inputs(batch)
        # What the model draws is a function of the step, so that nothing has to be saved for it.
        torch.manual_seed(
            sample_seed(self.config.run.seed ^ _DROPOUT_STREAM, self.step, self.ranks.rank)
        )
        self.optimizer.zero_grad(set_to_none=True)
        # The forward pass moves running statistics; a step that is left out must not.
        statistics = (
            {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            if optim.skip_nonfinite
            else {}
        )
        terms = cached_backward(
            self.towers,
            self.loss,
            images,
            tokens,
            chunk_size=self.config.data.batch_size * (len(images) // len(batch)),
            autocast=self.autocast,
            scale=self.scaler.scale,
            per_chunk_statistics=True,
        )
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, optim.grad_clip_norm or math.inf)
        values = _on_host({**terms, "grad_norm": norm})
        if not self._is_finite(values):
            self._not_finite(values, batch)
            self.model.load_state_dict(statistics, strict=False)
            self.scaler.update()
            return None
        if self._take_step():
            clamp_logit_scale(self.model)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        return values

    def _is_finite(self, values: Values) -> bool:
        """Loss and gradient; measurements may be infinite, such as the margin of a lone pair."""
        judged = [value for name, value in values.items() if name.endswith("_loss")]
        if not self.scaler.is_enabled():  # else an overflow of float16 is the scaler's to handle
            judged.append(values["grad_norm"])
        return all(map(math.isfinite, judged))

    def _take_step(self) -> bool:
        """The optimizer's; False where the scaler left it out, for an overflow of float16."""
        self.scaler.step(self.optimizer)
        if not self.scaler.is_enabled():
            return True
        before = self.scaler.get_scale()
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < 1:
            raise DivergedError(
                f"the gradient is not finite at step {self.step} in float16, even scaled by "
                f"{before:g}; try --precision amp_bf16, a lower --lr, or --grad-clip-norm 1"
            )
        return after >= before

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures and tokens on the device; with two views, all first ones before all second."""
        tokens = self.created.tokenizer(batch.texts).to(self.device, non_blocking=True)
        return as_input(batch.images.to(self.device, non_blocking=True)), tokens

    def _not_finite(self, values: Values, batch: Batch) -> None:
        """Write down what was in the step, then raise or, where asked to, go on."""
        record = {
            "step": self.step,
            "epoch": self.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "logit_scale": self.logit_scale,
            # JSON has no word for them.
            "values": {k: v if math.isfinite(v) else str(v) for k, v in values.items()},
            "records": self.ranks.gathered(
                {"indices": batch.indices.tolist(), "texts": batch.texts}
            ),
        }
        path = self.folder / f"nonfinite-step-{self.step}.json"
        if self.ranks.is_main:
            path.write_text(json.dumps(record, indent=2) + "\n")
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        message = (
            f"loss or gradient are not finite at step {self.step} (epoch {self.epoch}, learning "
            f"rate {record['learning_rate']:g}): {listed}; logit scale {self.logit_scale:g}; the "
            f"records of the batch are in {path}"
        )
        if not self.config.optim.skip_nonfinite:
            raise DivergedError(
                f"{message}. Try a lower --lr, a longer --warmup, --grad-clip-norm 1, or "
                "--skip-nonfinite; the last checkpoint is older than this step"
            )
        self.left_out += 1
        self.ranks.say(f"left out: {message}")

    def _skipped_by_all(self) -> SkipReport:
        """What the ranks had to leave out of this epoch."""
        total = SkipReport()
        for report in self.ranks.gathered(self.loader.skipped.to_dict()):
            total.merge(SkipReport.from_dict(report))
        return total

    def _require_usable(self, seen: int, skipped: SkipReport) -> None:
        source = self.data.train.name
        require_usable(max(seen, 1), skipped, self.config.data.max_skipped, source)

    def _log(self, window: Window, progress: tqdm[Any]) -> Window:
        """Write the window down where a record is due; the window to go on with."""
        due = self.step % self.config.run.log_every_n_steps == 0
        if not (due or self.step_in_epoch == self.steps_per_epoch):
            return window
        record = {
            **window.record(),
            "logit_scale": self.logit_scale,
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        if window.steps:
            self.track("train", epoch=self.epoch, **record)
            progress.set_postfix_str(shown(record))
        return self._window()

    def _window(self) -> Window:
        return Window(term_weights(self.config.loss))

    def track(self, kind: str, **values: Any) -> None:
        """Hand a record to the log and the trackers, on the main rank."""
        if self.ranks.is_main:
            for tracker in self.trackers:
                tracker.write(kind, self.step, values)

    def _finish_epoch(self, progress: tqdm[Any]) -> None:
        """Save, and validate where that is due."""
        run = self.config.run
        self.validation_due = self.epoch % run.val_frequency == 0 or self.epoch == run.epochs
        self.save()  # before validating: an error there must not cost the epoch
        kept = run.keep_frequency is not None and self.epoch % run.keep_frequency == 0
        if kept and self.ranks.is_main:
            self.checkpoints.keep(self.state(), self.epoch)
        if self.validation_due:
            self._validate(progress)

    def _validate(self, progress: tqdm[Any]) -> None:
        """Measure on the main rank, keep the best weights, and save that it is done."""
        self.validation_due = False
        if self.ranks.is_main:
            metrics = self.assessor.validate(self.data)
            self.track("validation", epoch=self.epoch, **metrics)
            listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
            progress.write(f"  epoch {self.epoch:>3}  validation: {listed}")
            score = metrics[SELECTION_METRIC[self.data.pictures is not None]]
            if score > self.best:
                self.best = score
                # For use, not to continue from: no optimizer, a third of the size.
                weights = self.assessor.created.model.state_dict()
                self.checkpoints.save_best({"config": self.config.to_dict(), "model": weights})
        self.save()
        self.ranks.wait()

    def _evaluate(self) -> None:
        """Log what the report at the end will hold, as of now; nothing is chosen by it."""
        if self.ranks.is_main:
            for name, metrics in self.assessor.evaluate(self.data).items():
                self.track("evaluation", set=name, **metrics)
        self.ranks.wait()

    def state(self) -> State:
        """All that a run continues from. Reader and dropout follow from position and seed."""
        return {
            "config": self.config.to_dict(),
            "global_batch": self.global_batch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "best": self.best,
            "validation_due": self.validation_due,
            "records": len(self.data.train),
            "left_out": self.left_out,
            "seconds": self.seconds,
        }

    def save(self) -> None:
        """Write the state to checkpoints/last.pt, on the main rank."""
        if self.ranks.is_main:
            self.checkpoints.save_last(self.state())

    def restore(self, state: State) -> None:
        """Continue from a state that `save` wrote, on any number of ranks with the same batch.

        Raises ValueError for a checkpoint of weights only, such as best.pt, and where the batch of
        all ranks together or the number of training pairs is another one.
        """
        if "optimizer" not in state:
            raise ValueError("this checkpoint holds weights only (best.pt): continue from last.pt")
        if state["global_batch"] != self.global_batch:
            raise ValueError(
                f"the run has {state['global_batch']} pairs in a step, now --batch-size times "
                f"--accum-freq times {self.ranks.size} process(es) is {self.global_batch}"
            )
        if state["records"] != len(self.data.train):
            raise ValueError(
                f"the run was trained on {state['records']:,} pairs, --train-data has "
                f"{len(self.data.train):,}: these are other data"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.best = state["best"]
        self.validation_due = state["validation_due"]
        self.left_out = state["left_out"]
        self.seconds_before = state["seconds"]
        if self.ranks.is_main:
            again = {"validation"} if self.validation_due else set()
            if self.step == self.total_steps:
                again.add("evaluation")  # the one at the end
            self.log.truncate(self.step, again)

    def _wrapped_towers(self) -> Any:
        towers: Any = Towers(self.model)
        if self.config.run.torchcompile:
            towers = torch.compile(towers)
        if self.ranks.group is None:
            return towers
        return DistributedDataParallel(
            towers,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            process_group=self.ranks.group,
            gradient_as_bucket_view=True,
        )

    def _progress(self) -> tqdm[Any]:
        return tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=self.config.label(),
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not self.ranks.is_main,
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _moving_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def _on_host(values: dict[str, Tensor]) -> Values:
    """Numbers of scalar tensors, fetched in one go: on a GPU each fetch waits for all its work."""
    numbers: list[float] = torch.stack([value.double() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
