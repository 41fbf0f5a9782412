"""Checks of the arguments of the losses, promotion to one dtype, and comparison over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from . import distributed
from ._dispatch import Options, memory_budget, use_native
from .distributed import Batch

PAIR_OPERATORS = "pair_statistics", "sigmoid_rows"


@dataclass(frozen=True)
class Inputs:
    """Checked arguments of a loss."""

    image: Tensor  # [n, d], all features of one dtype
    text: Tensor  # [n, d]
    scale: Tensor  # scalar, float64
    bias: Tensor | None = None  # scalar, float64
    batch: Batch | None = None  # where the rows lie in a group's batch
    labels: Tensor | None = None  # int64 [n]
    negative_text: Tensor | None = None  # [m, d]
    negative_image: Tensor | None = None  # [k, d]


def prepare(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float = 1.0,
    logit_bias: Tensor | float | None = None,
    *,
    options: Options,
    operators: tuple[str, ...] = (),
    needs_bias: bool = False,
    labels: Tensor | None = None,
    negative_text_features: Tensor | None = None,
    negative_image_features: Tensor | None = None,
    numbers: Mapping[str, float] | None = None,
) -> Inputs:
    """Check the arguments of a loss, convert scalars to tensors, and compare them over the ranks.

    `operators` are those that the loss will use, and `numbers` its weights and margins by name. All
    checks of this process precede the first collective, so that no other rank waits for a process
    that has raised.
    """

    def check() -> distributed.Arguments:
        options.check()
        for name, value in (numbers or {}).items():
            check_number(name, value)
        image, text = check_towers(image_features=image_features, text_features=text_features)
        if image.shape != text.shape:
            raise ValueError(
                "image_features and text_features must have the same shape, got "
                f"{list(image.shape)} and {list(text.shape)}; row i of one must pair "
                "with row i of the other"
            )
        if labels is not None:
            check_labels(labels, "labels", image, "image_features")
        negatives = {
            "negative_text_features": negative_text_features,
            "negative_image_features": negative_image_features,
        }
        for name, features in negatives.items():
            if features is not None:  # as if it were a tower, for the names in the message
                image, _ = check_towers(**{"image_features": image, name: features})
        if needs_bias and logit_bias is None:
            raise ValueError(
                "logit_bias is missing: the sigmoid loss needs it; pass the model's, or 0.0"
            )
        for operator in operators:
            if use_native(operator, image, options) and operator in PAIR_OPERATORS:
                memory_budget(options)
        bias = None if logit_bias is None else _scalar(logit_bias, "logit_bias", image)
        return {
            "image_features": image,
            "text_features": text.to(image.dtype),
            "logit_scale": _scalar(logit_scale, "logit_scale", image),
            "logit_bias": bias,
            **{n: t if t is None else t.to(image.dtype) for n, t in negatives.items()},
            "labels": labels,
        }

    group = distributed.groups.resolve(options.group)
    if group is None:
        return _inputs(check(), None)
    arguments, batch = distributed.agree(check, group, options.exchange)
    if options.exchange != "replicate":
        return _inputs(arguments, batch)
    return _inputs(_replicate(arguments, batch), None)  # from here on as one process


def _inputs(arguments: distributed.Arguments, batch: Batch | None) -> Inputs:
    image, text, scale = (
        arguments[name] for name in ("image_features", "text_features", "logit_scale")
    )
    assert image is not None
    assert text is not None
    assert scale is not None
    return Inputs(
        image,
        text,
        scale,
        arguments["logit_bias"],
        batch,
        arguments["labels"],
        arguments["negative_text_features"],
        arguments["negative_image_features"],
    )


def _replicate(arguments: distributed.Arguments, batch: Batch) -> distributed.Arguments:
    """Return the arguments with the rows of all ranks."""
    counts = {
        "image_features": batch.counts,
        "text_features": batch.counts,
        "negative_text_features": batch.negative_texts,
        "negative_image_features": batch.negative_images,
    }
    replicated = dict(arguments)
    for name, rows in counts.items():
        features = arguments[name]
        if features is not None:
            wide = torch.promote_types(features.dtype, torch.float32)  # for W times a gradient
            of_these = replace(batch, counts=rows)
            replicated[name] = distributed.replicate_rows(features, of_these, wide)
    labels = arguments["labels"]
    if labels is not None:
        replicated["labels"] = distributed.gather_constants(labels, batch)
    return replicated


def check_towers(**towers: Tensor) -> tuple[Tensor, Tensor]:
    """Check the features of two towers, given by name, and promote mixed dtypes."""
    for name, features in towers.items():
        if not isinstance(features, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
        if features.is_nested:  # it has no shape
            raise TypeError(f"{name} must be dense, got a nested tensor; use .to_padded_tensor()")
        if features.dim() != 2:
            raise ValueError(
                f"{name} must be [N, d], one embedding per row, got shape {list(features.shape)}"
            )
        if features.layout != torch.strided:
            raise TypeError(f"{name} must be dense, got {features.layout}; use .to_dense()")
        if 0 in features.shape:
            raise ValueError(
                f"{name} must not be empty, got shape {list(features.shape)}; skip empty batches"
            )
        if not features.is_floating_point() or features.dtype.itemsize < 2:
            raise TypeError(
                f"{name} must be float32, float64, bfloat16 or float16, got {features.dtype}; "
                "convert it with .float()"
            )
    names = " and ".join(towers)
    rows, cols = towers.values()
    if rows.shape[1] != cols.shape[1]:
        raise ValueError(
            f"{names} must have the same width d, got {list(rows.shape)} and {list(cols.shape)}"
        )
    if rows.device != cols.device:
        raise ValueError(
            f"{names} must be on one device, got {rows.device} and {cols.device}; "
            "move one with .to()"
        )
    dtype = torch.promote_types(rows.dtype, cols.dtype)
    return rows.to(dtype), cols.to(dtype)


def check_number(name: str, value: float) -> None:
    """Raise TypeError or ValueError unless `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # not math.isfinite, which torch.compile cannot trace
        raise ValueError(f"{name} must be finite, got {value}")


def check_labels(labels: Tensor, name: str, features: Tensor, features_name: str) -> None:
    """Raise ValueError or TypeError unless there is one int64 label for each row."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}; convert it with .long()")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} must be [{features.shape[0]}], one per row of {features_name}, "
            f"got shape {list(labels.shape)}"
        )
    if labels.device != features.device:
        raise ValueError(
            f"{name} must be on the device of {features_name}, {features.device}, "
            f"got {labels.device}; move it with .to()"
        )


def _scalar(value: Tensor | float, name: str, features: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        # Real: numbers of numpy. True would be an output_dict that was passed in this place.
        if isinstance(value, (int, float, Real)) and not isinstance(value, bool):
            # Not torch.tensor: it copies from the host, which a CUDA graph cannot capture.
            return torch.full((), float(value), dtype=torch.float64, device=features.device)
        raise TypeError(f"{name} must be a tensor or a number, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"{name} must be a scalar, got shape {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point scalar, got {value.dtype}")
    if value.device != features.device:
        raise ValueError(
            f"{name} must be on the device of the features, {features.device}, got {value.device}; "
            "move it with .to()"
        )
    # In float64 the shares of the positives and of the negatives in the scale's gradient, which
    # nearly cancel, meet before they are rounded.
    return (value.reshape(()) if value.dim() else value).double()
