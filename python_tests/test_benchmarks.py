"""Tests of the benchmarks: tiny batches through the runner, the CSV and the page."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from losses.backends import needs_native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of the benchmarks, which are not installed."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.{name}")

    return load


@needs_native
@pytest.mark.parametrize("family", ["clip", "cyclip", "cycle", "siglip", "hinge", "ranks", "top-k"])
def test_every_family(family: str, benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Every peer can be called, and no page hides a failure."""
    loss, results, report = (benchmark(name) for name in ("loss", "results", "report"))
    measure = benchmark("measure")
    plan = dataclasses.replace(
        loss.QUICK,
        sizes={family: (32,)},
        rounds=measure.Rounds(1, 1, 0.0),
        error_rows=32,
        seeds=1,
    )
    lines = [*loss.time_lines(family, plan), *loss.error_lines(family, plan)]
    ours = [line for line in lines if line["ours"] == "yes"]
    assert ours
    assert {line["status"] for line in ours} == {"ok"}
    assert all(float(line["median_ms"]) > 0 for line in ours if line["measure"] == "time")
    errors = [line["loss_error"] for line in ours if line["measure"] == "error"]
    assert all(float(error) < 1e-2 for error in errors if error)

    path = tmp_path / "results.csv"
    machine = {"device": "a processor", "isa": "a set"}
    list(results.written((line | machine for line in lines), [*loss.COLUMNS, *machine], path))
    page = report.page(results.Results(results.read(path)), str(path))
    assert "## Where cyclip_ext loses" in page
    assert "(a processor, a set):" in page


@needs_native
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
@pytest.mark.parametrize(("variant", "temperature"), [(1, 1.0), (3, 2.0)])
def test_grad_cache(
    variant: int, temperature: float, benchmark: Callable[[str], ModuleType]
) -> None:
    """Both gradients match the whole batch's, but accumulation scales that of the temperature."""
    pytest.importorskip("open_clip", exc_type=Exception)
    (figures,) = benchmark("grad_cache").measured(variant, "mini", 600, rounds=1)
    assert figures.error < 1e-5
    assert figures.temperature == pytest.approx(temperature, rel=1e-4)
    assert figures.peak_bytes > 0
