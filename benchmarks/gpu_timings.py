"""Stages of `python -m benchmarks gpu` that measure time, memory and error.

Each yields lines for the CSV until its deadline.
"""

from __future__ import annotations

import gc
import os
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cyclip_ext import CyCLIPLoss

from .family import Family, Peer
from .gpu_plan import Line, Plan, Precision, backend_of, columns_of, failure, line_of
from .inputs import Batch
from .measure import (
    FLUSH_BYTES,
    Entrant,
    Errors,
    Rounds,
    errors,
    gpu_peak_bytes,
    gradients,
    take_turns,
)
from .peers import gpu_families

TOP_K = 10
PANEL_BYTES = 256 << 20  # of Context in csrc/kernels/cuda/operators.h

# ---------------------------------------------------------------- time

Call = Callable[[], object]


def time(plan: Plan) -> Iterator[Line]:
    """Yield the time and the rate of each operator and direction, and of torch's own products."""
    for precision, batch in plan.batches():
        for name, make in _calls(batch, backend_of(plan) == "native").items():
            yield _timed(plan, precision, batch, name, make)
            if plan.is_over():
                yield line_of("time", "rest", status="skipped: out of time")
                return


def _timed(
    plan: Plan, precision: Precision, batch: Batch, name: str, make: Callable[[], Call]
) -> Line:
    columns = columns_of(precision, batch)
    try:
        call = make()
        with FlopCounterMode(display=False) as counter:
            call()
        times = sorted(milliseconds(call, plan.device) for _ in range(plan.rounds))
    except Exception as error:  # a failing operator must not end the stage
        return line_of("time", name, status=failure(error), **columns)
    finally:
        gc.collect()
    low, middle, high = quantiles(times, n=4, method="inclusive")
    return line_of(
        "time",
        name,
        median_ms=f"{middle:.4g}",
        lower_quartile_ms=f"{low:.4g}",
        upper_quartile_ms=f"{high:.4g}",
        tflops=f"{counter.get_total_flops() / middle / 1e9:.3g}",
        **columns,
    )


def milliseconds(call: Call, device: str) -> float:
    """Return the duration of one call, by events on a GPU, with a cold L2 cache."""
    if torch.device(device).type != "cuda":
        begin = clock.perf_counter()
        call()
        return (clock.perf_counter() - begin) * 1e3
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    call()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended))


def _calls(batch: Batch, native: bool) -> dict[str, Callable[[], Call]]:
    """Return the timed calls by name, as functions that prepare a call and return it."""
    x, y = batch.image_features.detach(), batch.text_features.detach()
    scale, bias = batch.logit_scale.detach(), batch.logit_bias.detach()
    (n, d), device = x.shape, x.device
    side = max(128, int((PANEL_BYTES // x.element_size()) ** 0.5) // 128 * 128)
    side = min(side, -(-n // 128) * 128)

    def product(rows: int, depth: int, cols: int) -> Call:
        left = torch.randn(rows, depth, device=device).to(x.dtype)
        right = torch.randn(depth, cols, device=device).to(x.dtype)
        out = torch.empty(rows, cols, dtype=x.dtype, device=device)
        return lambda: torch.mm(left, right, out=out)

    calls: dict[str, Callable[[], Call]] = {
        "torch.mm, N x d x N": lambda: product(n, d, n),
        f"torch.mm, panel {side} x {side} x d": lambda: product(side, side, d),
    }
    if not native:
        return calls
    operators: Any = torch.ops.cyclip_ext
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" and x.dtype == torch.float32
    labels = torch.arange(n, device=device)
    ones = torch.ones(n, dtype=torch.float64, device=device)

    def pairs_backward() -> Call:
        row_lse, col_lse, _, _, _, *indices, dots = operators.pair_statistics(x, y, scale, 0, tf32)
        grads = ones, ones, -ones, 0 * ones, 0 * ones
        arguments = (x, y, scale, 0, row_lse, col_lse, *indices, dots, *grads, True, True, tf32)
        return lambda: operators.pair_statistics_backward(*arguments, False)

    def sigmoid_backward() -> Call:
        _, dots = operators.sigmoid_rows(x, y, scale, bias, 0, tf32)
        arguments = (x, y, scale, bias, 0, dots, ones, True, True, tf32)
        return lambda: operators.sigmoid_rows_backward(*arguments, False)

    def grams_backward() -> Call:
        plus, minus, _ = operators.cycle_grams(x, y, False)
        return lambda: operators.cycle_grams_backward(x, y, minus, plus, x.new_empty(0, 0).double())

    def direct_backward() -> Call:
        *_, products = operators.cycle_direct(x, y)
        return lambda: operators.cycle_direct_backward(x, y, products, ones[0], ones[0])

    def whole(name: str, *arguments: Any, **options: Any) -> Callable[[], Call]:
        return lambda: lambda: getattr(operators, name)(*arguments, **options)

    calls |= {
        "row_norms": whole("row_norms", x),
        "pair_statistics forward": whole(
            "pair_statistics", x, y, scale, 0, tf32, needs_hardest=False
        ),
        "pair_statistics forward with hardest": whole("pair_statistics", x, y, scale, 0, tf32),
        "pair_statistics backward": pairs_backward,
        "sigmoid_rows forward": whole("sigmoid_rows", x, y, scale, bias, 0, tf32),
        "sigmoid_rows backward": sigmoid_backward,
        "cycle_grams forward": whole("cycle_grams", x, y, False),
        "cycle_grams backward": grams_backward,
        "retrieval_ranks": whole("retrieval_ranks", x, y, labels, labels, tf32),
        "similarity_top_k": whole("similarity_top_k", x, y, min(TOP_K, n), tf32),
    }
    if n < 4096:  # the route for small batches, quadratic in memory
        calls["cycle_direct forward"] = whole("cycle_direct", x, y)
        calls["cycle_direct backward"] = direct_backward
    return calls


# ---------------------------------------------------------------- engines

ENGINES = ("hopper", "portable")  # of CYCLIP_CUDA_ENGINE

# The operators that have kernels for both engines, and the family whose errors are those of a loss
# with this operator.
_OF_ENGINES = {
    "pair_statistics forward": "clip",
    "pair_statistics forward with hardest": "clip",
    "pair_statistics backward": "clip",
    "sigmoid_rows forward": "siglip",
    "sigmoid_rows backward": "siglip",
}


def engines(plan: Plan) -> Iterator[Line]:
    """Yield time and error of 16-bit operators with the engine that CYCLIP_CUDA_ENGINE selects.

    The errors are those of the losses: of the value beside forward operators, and of the gradients
    beside backward operators.
    """
    selected = os.environ.get("CYCLIP_CUDA_ENGINE") or "portable"
    chosen = selected
    if torch.device(plan.device).type == "cuda":
        chosen = str(torch.ops.cyclip_ext.cuda_engine(torch.device(plan.device).index or 0))
    if not chosen.startswith(selected):
        yield line_of("engines", selected, status=f"skipped: {chosen}")
        return
    families = {family.name: family for family in gpu_families(backend_of(plan))}
    of_16_bits = tuple(p for p in plan.precisions if p.dtype.itemsize == 2)
    for precision, batch in replace(plan, precisions=of_16_bits).batches():
        calls = _calls(batch, backend_of(plan) == "native")
        found: dict[str, Errors | None] = {}
        for name, family in _OF_ENGINES.items():
            if name not in calls or family not in plan.families:
                continue
            if family not in found:
                found[family] = _errors_of_ours(families[family], batch, plan.error_rows)
            timed = _timed(plan, precision, batch, name, calls[name])
            shown = _shown(found[family])
            of_value = {"loss_error": shown.pop("loss_error")}
            yield (
                timed
                | (shown if name.endswith("backward") else of_value)
                | {
                    "stage": "engines",
                    "name": f"{selected}, {name}",
                }
            )
            if plan.is_over():
                yield line_of("engines", f"{selected}, rest", status="skipped: out of time")
                return


def _errors_of_ours(family: Family, batch: Batch, rows: int) -> Errors | None:
    (peer,) = (peer for peer in family.peers if peer.ours)
    entrant = Entrant(peer, batch)
    return entrant.attempt(partial(_errors, family, peer, batch, rows))


def engine_ratios(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the time of hopper relative to portable for the lines of both engines."""
    medians = {
        (line["name"], *(line[name] for name in ("precision", "N", "d"))): line["median_ms"]
        for line in lines
        if line["stage"] == "engines" and line["status"] == "ok"
    }
    for (name, *of_batch), median in medians.items():
        engine, _, operator = str(name).partition(", ")
        other = medians.get((f"portable, {operator}", *of_batch))
        if engine == "hopper" and other is not None:
            columns = dict(zip(("precision", "N", "d"), of_batch, strict=True))
            ratio = float(str(median)) / float(str(other))
            note = f"hopper takes {ratio:.2f} of portable's time"
            yield line_of("engines", operator, note=note, **columns)


# ---------------------------------------------------------------- kernels


def kernels(plan: Plan) -> Iterator[Line]:
    """Yield the time of each kernel of one step of the CyCLIP loss, from torch.profiler."""
    module = CyCLIPLoss(backend=backend_of(plan), hinge=0.1)
    on_gpu = torch.device(plan.device).type == "cuda"
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if on_gpu else [activity.CPU]

    def loss(b: Batch) -> Tensor:
        value: Tensor = module(b.image_features, b.text_features, b.logit_scale, b.logit_bias)
        return value

    for precision, batch in replace(plan, sizes=plan.sizes[-1:], widths=plan.widths[:1]).batches():
        gradients(loss, batch)
        with torch.profiler.profile(activities=activities) as profile:
            gradients(loss, batch)
            if on_gpu:
                torch.cuda.synchronize()
        spent = [
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event)
            for event in profile.key_averages()
            if not on_gpu or event.device_type.name == "CUDA"
        ]
        total = sum(microseconds for microseconds, _ in spent) or 1.0
        for microseconds, event in sorted(spent, key=lambda pair: -pair[0])[:25]:
            yield line_of(
                "kernels",
                event.key[:200],
                median_ms=f"{microseconds / 1e3:.4g}",
                note=f"{event.count} calls, {microseconds / total:.0%}",
                **columns_of(precision, batch),
            )


# ---------------------------------------------------------------- peers


def peers(plan: Plan) -> Iterator[Line]:
    """Yield time, memory and error of the losses and of those of other packages."""
    compiled: set[str] = set()  # families whose compiled peer has been measured
    for precision, batch in plan.batches():
        for family in gpu_families(backend_of(plan)):
            if family.name not in plan.families:
                continue
            chosen = tuple(
                peer for peer in family.peers if _takes_part(peer, family, plan, compiled)
            )
            compiled |= {family.name} if any(peer.compiled for peer in chosen) else set()
            yield from _family_lines(replace(family, peers=chosen), precision, batch, plan)
            if plan.is_over():
                yield line_of("peers", "rest", status="skipped: out of time")
                return


def _takes_part(peer: Peer, family: Family, plan: Plan, compiled: set[str]) -> bool:
    if peer.compiled and family.name in compiled:  # compilation takes longer than all others
        return False
    return plan.peers is None or peer.name in plan.peers


def _family_lines(family: Family, precision: Precision, batch: Batch, plan: Plan) -> Iterator[Line]:
    entrants = [Entrant(peer, batch) for peer in family.peers]
    found = [
        entrant.attempt(partial(_errors, family, entrant.peer, batch, plan.error_rows))
        for entrant in entrants
    ]
    take_turns(entrants, Rounds(least=plan.rounds, most=plan.rounds))
    for entrant, of_peer in zip(entrants, found, strict=True):
        peak = None
        if batch.image_features.is_cuda and entrant.loss is not None:
            peak = entrant.attempt(partial(gpu_peak_bytes, entrant.loss, batch))
        low, middle, high = entrant.quartiles_ms() or (None, None, None)
        flops = family.flops(entrant.peer, *batch.image_features.shape)
        rate = flops / middle / 1e9 if flops and middle else None
        yield line_of(
            "peers",
            f"{family.name}, {entrant.peer.name}",
            status=entrant.status,
            median_ms=_rounded(middle, 4),
            lower_quartile_ms=_rounded(low, 4),
            upper_quartile_ms=_rounded(high, 4),
            tflops=_rounded(rate, 3),
            peak_mib=_rounded(None if peak is None else peak / 2**20, 4),
            note=entrant.peer.note,
            **_shown(of_peer),
            **columns_of(precision, batch),
        )


def _shown(errors_of_peer: Errors | None) -> Line:
    return {
        "loss_error": _rounded(errors_of_peer and errors_of_peer.loss, 2),
        "grad_error": _rounded(errors_of_peer and errors_of_peer.grad, 2),
        "scalar_grad_error": _rounded(errors_of_peer and errors_of_peer.scalar_grad, 2),
    }


def _errors(family: Family, peer: Peer, batch: Batch, rows: int) -> Errors:
    small = batch.first(rows)
    exact = gradients(family.truth, small.in_float64())
    return errors(gradients(peer.make(small), small), exact)


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}g}"
