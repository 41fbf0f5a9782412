"""Optimizer steps: forward and backward of a batch, and whether the step was finite.

Nothing here waits for the device. The device checks whether a step is finite, and leaves weights
and optimizer unchanged if it is not. The host reads the result one step later, while the device
computes the next step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from .._files import write_atomic
from ..data import Batch, as_input
from ..data.seeding import sample_seed
from ..grad_cache import cached_backward
from .config import TrainConfig
from .objective import Objective
from .optim import clamp_logit_scale, learning_rate, make_optimizer, set_learning_rate
from .precision import grad_scaler_for
from .ranks import Ranks

_DROPOUT_STREAM = 0x44524F50  # so that the model's draws differ from those of the data

Features = tuple[Tensor, Tensor, Tensor, Tensor | None]


class DivergedError(RuntimeError):
    """Raised if the loss or the gradient is not finite; the message has the step and all terms."""


class Towers(nn.Module):
    """A model's two towers as one call, which DistributedDataParallel and torch.compile can wrap.

    Features are raw: the losses normalize without rounding to bfloat16 first. The temperature is
    an output as well, because a wrapper synchronizes the outputs of its forward pass. A locked
    tower is not applied here: its inputs are its features.
    """

    def __init__(self, model: nn.Module, *, lock_image: bool, lock_text: bool) -> None:
        super().__init__()
        self.model: Any = model
        self.lock_image = lock_image
        self.lock_text = lock_text

    def forward(self, images: Tensor, tokens: Tensor) -> Features:
        """[n, 3, s, s], [n, context_length] -> [n, d], [n, d], scalar, scalar or None."""
        return (
            images if self.lock_image else self.model.encode_image(images),
            tokens if self.lock_text else self.model.encode_text(tokens),
            self.model.logit_scale.exp(),
            getattr(self.model, "logit_bias", None),
        )


@dataclass(frozen=True)
class Inputs:
    """A batch on the device: images [n, 3, s, s], tokens [n, context_length], labels int64 [b].

    With two views of b pairs n is 2 b, and all first views come before all second ones. labels: of
    groups of pairs that are not each other's negatives. batch: the same on the host.
    """

    images: Tensor
    tokens: Tensor
    batch: Batch
    labels: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """A step that was launched.

    values: float64 [K] on the device, by name: the terms of the loss, then grad_norm and
    logit_scale before the step. finite: bool scalar on the host, valid once `wait` has returned.
    moved: whether the weights changed; a float16 overflow is finite, but changes nothing.
    """

    step: int
    learning_rate: float
    names: tuple[str, ...]
    values: Tensor
    finite: Tensor
    done: Any  # torch.cuda.Event, or None on the CPU
    moved: bool
    batch: Batch

    def wait(self) -> bool:
        """Wait for the result of the check; return whether loss and gradient were finite."""
        if self.done is not None:
            self.done.synchronize()
        return bool(self.finite)


class Stepper:
    """The optimizer steps of one model on one rank.

    model: the module that is trained. ema: its moving average, if there is one.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        ema: AveragedModel | None,
        objective: Objective,
        autocast: Callable[[], AbstractContextManager[Any]],
        precision: str,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.model: Any = model
        self.ema = ema
        self.loss = objective.loss
        self.autocast = autocast
        self.device = device
        self.ranks = ranks
        self.scaler = grad_scaler_for(precision, device)
        self.towers = self._wrapped_towers()
        self.optimizer: Any = make_optimizer(model, config.optim)
        self.pending: StepResult | None = None

    def _wrapped_towers(self) -> Any:
        run = self.config.run
        towers: Any = Towers(self.model, lock_image=run.lock_image, lock_text=run.lock_text)
        if run.torchcompile:
            towers = torch.compile(towers)
        if self.ranks.group is None:
            return towers
        return DistributedDataParallel(
            towers,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            process_group=self.ranks.group,
            gradient_as_bucket_view=True,
        )

    def launch(self, inputs: Inputs, step: int, total_steps: int) -> StepResult | None:
        """Launch optimizer step `step` of `total_steps`; return the result of the previous one.

        None for the first one. The result of the last step comes from `settle`.
        """
        optim = self.config.optim
        rate = learning_rate(step, total_steps, optim)
        set_learning_rate(self.optimizer, rate)
        # The model's draws are a function of the step, so that no generator has to be saved.
        torch.manual_seed(
            sample_seed(self.config.run.seed ^ _DROPOUT_STREAM, step, self.ranks.rank)
        )
        self.optimizer.zero_grad(set_to_none=True)
        # The forward pass updates running statistics, which a skipped step must not.
        may_skip = optim.skip_nonfinite
        statistics = [buffer.clone() for buffer in self.model.buffers()] if may_skip else []
        loss: Any = self.loss
        if inputs.labels is not None:
            loss = partial(loss, labels=inputs.labels)
        chunk_size = self.config.data.batch_size * (len(inputs.images) // len(inputs.batch))
        images, tokens = inputs.images, inputs.tokens
        if self.config.run.lock_image:
            images = self._features(self.model.encode_image, images, chunk_size)
        if self.config.run.lock_text:
            tokens = self._features(self.model.encode_text, tokens, chunk_size)
        terms = cached_backward(
            self.towers,
            loss,
            images,
            tokens,
            chunk_size=chunk_size,
            autocast=self.autocast,
            scale=self.scaler.scale,
            per_chunk_statistics=True,
        )
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, optim.grad_clip_norm or math.inf)
        scale = self.model.logit_scale.detach().exp()
        named = {**terms, "grad_norm": norm, "logit_scale": scale}
        values = torch.stack([value.double() for value in named.values()])
        # A loss may be finite on some ranks only.
        finite = self.ranks.all(values[self._judged(named)].isfinite().all())
        before = self.settle()  # the average takes the weights as the former step left them
        moved = self._update(finite, step)
        clamp_logit_scale(self.model)
        for buffer, former in zip(self.model.buffers(), statistics, strict=False):
            buffer.copy_(torch.where(finite, buffer, former))
        fetched = self._fetched(finite)
        self.pending = StepResult(step, rate, tuple(named), values, *fetched, moved, inputs.batch)
        return before

    def _features(self, encode: Any, inputs: Tensor, chunk_size: int) -> Tensor:
        """Return the features of a locked tower, which is applied once, also to many chunks."""
        with torch.no_grad(), self.autocast():
            return torch.cat([encode(chunk) for chunk in inputs.split(chunk_size)])

    def settle(self) -> StepResult | None:
        """Finish the pending step, if there is one: the moving average follows its weights."""
        result, self.pending = self.pending, None
        if result is None or self.ema is None:
            return result
        if result.wait() and result.moved:
            self.ema.update_parameters(self.model)
        else:  # of the average only the running statistics, which follow the model's
            for own, buffer in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
                own.copy_(buffer)
        return result

    def _judged(self, named: dict[str, Tensor]) -> list[int]:
        """Return the indices of loss and gradient.

        Measurements may be infinite, such as the margin of a lone pair. The GradScaler handles
        overflows of a float16 gradient.
        """
        return [
            index
            for index, name in enumerate(named)
            if name.endswith("_loss") or (name == "grad_norm" and not self.scaler.is_enabled())
        ]

    def _update(self, finite: Tensor, step: int) -> bool:
        """Step the optimizer if the step is finite; return whether the scaler did not skip it."""
        if not self.scaler.is_enabled():
            self.optimizer.found_inf = (~finite).float()  # fused AdamW skips where this is 1
            self.optimizer.step()
            return True
        # In float16 the host has to see the scale after each step anyway.
        if not finite:
            self.scaler.update()
            return False
        self.scaler.step(self.optimizer)
        before = self.scaler.get_scale()
        self.scaler.update()
        after = self.scaler.get_scale()
        if after < 1:
            raise DivergedError(
                f"the gradient is not finite at step {step} in float16, even scaled by "
                f"{before:g}; try --precision amp_bf16, a lower --lr, or --grad-clip-norm 1"
            )
        return after >= before

    def _fetched(self, flag: Tensor) -> tuple[Tensor, Any]:
        """Start copying a flag to the host; return the copy and the event that ends it."""
        if flag.device.type != "cuda":
            return flag, None
        copy = flag.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(flag.device))  # another device may be current
        return copy, event


def report_not_finite(result: StepResult, epoch: int, folder: Path, ranks: Ranks) -> str:
    """Write the contents of a step to a JSON file in `folder`, and return them in a line."""
    path = folder / f"nonfinite-step-{result.step}.json"
    own = {"indices": result.batch.indices.tolist(), "texts": result.batch.texts}
    records = ranks.gathered(own)
    named = dict(zip(result.names, result.values.tolist(), strict=True))
    scale = named.pop("logit_scale")
    if ranks.is_main:
        record = {
            "step": result.step,
            "epoch": epoch,
            "learning_rate": result.learning_rate,
            "logit_scale": scale,
            # JSON has no NaN and no infinity.
            "values": {k: v if math.isfinite(v) else str(v) for k, v in named.items()},
            "records": records,
        }
        write_atomic(path, json.dumps(record, indent=2) + "\n")
    listed = ", ".join(f"{name} {value:g}" for name, value in named.items())
    return (
        f"loss or gradient are not finite at step {result.step} (epoch {epoch}, learning rate "
        f"{result.learning_rate:g}): {listed}; logit scale {scale:g}; the records of the batch are "
        f"in {path}"
    )


def restore_modules(
    state: Mapping[str, Any],
    model: nn.Module,
    stepper: Stepper,
    ema: AveragedModel | None,
    folder: Path,
) -> None:
    """Load weights, optimizer, scaler and average of a checkpoint of the run in `folder`.

    Raises ValueError, in one line, if one of them does not fit.
    """
    parts: dict[str, Any] = {"model": model, "optimizer": stepper.optimizer}
    parts |= {"scaler": stepper.scaler} | ({} if ema is None else {"ema": ema})
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except Exception as error:  # RuntimeError, KeyError, ...: any error of a foreign entry
            problem = " ".join(str(error).split())[:400]
            raise ValueError(_misfit(folder, name, problem)) from error
    for parameter, moments in stepper.optimizer.state.items():
        shapes = {key: tuple(value.shape) for key, value in moments.items()}
        shape = tuple(parameter.shape)
        if shapes != {"step": (), "exp_avg": shape, "exp_avg_sq": shape}:
            problem = f"the moments of a parameter of shape {shape} are {shapes}"
            raise ValueError(_misfit(folder, "optimizer", problem))


def _misfit(folder: Path, part: str, problem: str) -> str:
    return (
        f"the entry {part!r} of the checkpoint in {folder / 'checkpoints'} does not fit this run: "
        f"{problem}; resume with the version and packages that wrote it, or choose another --name"
    )


class Feeder:
    """Copies batches to the device.

    On a GPU the copy runs on a stream of its own, from the loader's page-locked memory. The host is
    one step ahead of the device, so a batch is copied while the device computes the step before it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch, labels: Tensor | None = None) -> Inputs:
        """Return images, tokens and labels on the device."""
        assert batch.tokens is not None  # of a loader that tokenizes
        with torch.cuda.stream(self.stream):  # does nothing for None
            images = batch.images.to(self.device, non_blocking=True)
            tokens = batch.tokens.to(self.device, non_blocking=True)
            labels = None if labels is None else labels.to(self.device)
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in (images, tokens, *([] if labels is None else [labels])):
                tensor.record_stream(current)  # else its memory could be reused too early
        return Inputs(as_input(images), tokens, batch, labels)
