"""Stages of `python -m benchmarks gpu` that check the device and the results.

Each yields lines for the CSV until its deadline.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cyclip_ext import CLIPLoss, CyCLIPLoss, SigLIPLoss
from cyclip_ext.libraries import backend_status, build_record

from .correctness import SHAPES, check
from .family import Loss
from .gpu_plan import BIAS, SCALE, Line, Plan, backend_of, columns_of, failure, line_of
from .inputs import Batch, make_batch
from .measure import gradients

# ---------------------------------------------------------------- facts


def facts(plan: Plan) -> Iterator[Line]:
    """Yield the properties of the device, and the versions of the installed packages."""
    found: dict[str, object] = {
        "cuda architectures built": build_record().get("cuda_architectures"),
        "nvcc": build_record().get("nvcc"),
        "cuda operators": backend_status()["cuda"].reason or "loaded",
    }
    if torch.device(plan.device).type == "cuda":
        properties = torch.cuda.get_device_properties(plan.device)
        free, total = torch.cuda.mem_get_info(plan.device)
        found |= {
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "L2 cache, MiB": properties.L2_cache_size >> 20,
            "memory, MiB": f"{free >> 20} free of {total >> 20}",
            "devices": torch.cuda.device_count(),
            "cuDNN": torch.backends.cudnn.version(),
            "engine": torch.ops.cyclip_ext.cuda_engine(torch.device(plan.device).index or 0),
        }
    packages = ("triton", "open_clip_torch", "inf-cl", "memeff", "siglip-kernel")
    for package in (*packages, "cut-cross-entropy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    for name, value in found.items():
        yield line_of("facts", name, note=value)


# ---------------------------------------------------------------- right


def right(plan: Plan) -> Iterator[Line]:
    """Yield the largest error of each operator relative to its bound, for several shapes."""
    if backend_of(plan) != "native":
        yield line_of("right", "operators", status="skipped: there are no native operators")
        return
    for n, d in (*SHAPES, *plan.large_shapes):
        findings = check(torch.device(plan.device), (n, d))
        try:
            for finding in findings:
                yield line_of(
                    "right",
                    finding.operator,
                    precision=str(finding.dtype).removeprefix("torch."),
                    N=n,
                    d=d,
                    status="ok" if finding.share <= 1 else f"wrong: {finding.quantity}",
                    note=f"{finding.share:.2f} of the bound",
                )
                if plan.is_over():
                    yield line_of("right", "rest", status="skipped: out of time")
                    return
        except Exception as error:  # the other shapes may succeed
            yield line_of("right", "rest of this shape", N=n, d=d, status=failure(error))


# ---------------------------------------------------------------- same


def same(plan: Plan) -> Iterator[Line]:
    """Yield whether losses return the same bits twice, on a stream, in a graph, on a second GPU."""
    losses = {"clip": CLIPLoss, "cyclip": CyCLIPLoss, "siglip": SigLIPLoss}
    for precision, batch in replace(plan, sizes=plan.sizes[:1]).batches():
        for family in plan.families:
            module = losses[family](backend=backend_of(plan))

            def loss(b: Batch, module: Any = module) -> Tensor:
                value: Tensor = module(
                    b.image_features, b.text_features, b.logit_scale, b.logit_bias
                )
                return value

            for name, compare in SAMENESS.items():
                try:
                    status = compare(loss, batch)
                except Exception as error:  # the other comparisons may succeed
                    status = failure(error)
                columns = columns_of(precision, batch)
                yield line_of("same", f"{family}, {name}", status=status, **columns)
            if plan.is_over():
                yield line_of("same", "rest", status="skipped: out of time")
                return


def _bits(outcome: tuple[Tensor, list[Tensor | None]]) -> list[Tensor]:
    value, grads = outcome
    return [value.detach().cpu(), *(grad.cpu() for grad in grads if grad is not None)]


def _verdict(expected: list[Tensor], found: list[Tensor]) -> str:
    return "ok" if all(map(torch.equal, expected, found)) else "wrong: different bits"


def _twice(loss: Loss, batch: Batch) -> str:
    return _verdict(_bits(gradients(loss, batch)), _bits(gradients(loss, batch)))


def _on_another_stream(loss: Loss, batch: Batch) -> str:
    if not batch.image_features.is_cuda:
        return "skipped: needs a GPU"
    expected = _bits(gradients(loss, batch))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outcome = gradients(loss, batch)
    stream.synchronize()
    return _verdict(expected, _bits(outcome))


def _in_a_graph(loss: Loss, batch: Batch) -> str:
    """Capture forward and backward, and replay them with other features in the same memory."""
    if not batch.image_features.is_cuda:
        return "skipped: needs a GPU"
    n, d = batch.image_features.shape
    dtype, device = batch.image_features.dtype, batch.image_features.device
    other = make_batch(n, d, SCALE / 2, BIAS / 2, dtype, device, seed=1)
    expected = _bits(gradients(loss, other))
    static = batch.first(n)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # torch's warm-up before a capture
        for _ in range(3):
            gradients(loss, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = gradients(loss, static)
    with torch.no_grad():
        for leaf, value in zip(static.leaves, other.leaves, strict=True):
            leaf.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    return _verdict(expected, _bits(outcome))


def _on_another_device(loss: Loss, batch: Batch) -> str:
    if torch.cuda.device_count() < 2 or not batch.image_features.is_cuda:
        return "skipped: needs two GPUs"
    here = batch.image_features.device.index
    device = torch.device("cuda", (here + 1) % torch.cuda.device_count())
    moved = Batch(*(leaf.detach().to(device).requires_grad_() for leaf in batch.leaves))
    return _verdict(_bits(gradients(loss, batch)), _bits(gradients(loss, moved)))


SAMENESS: dict[str, Callable[[Loss, Batch], str]] = {
    "twice": _twice,
    "another stream": _on_another_stream,
    "graph replayed with other features": _in_a_graph,
    "another device": _on_another_device,
}
