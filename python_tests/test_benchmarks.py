"""Tests of the benchmarks: tiny batches through the runner, the CSV and the page."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of the benchmarks, which are not installed."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.{name}")

    return load


@pytest.mark.native
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


@pytest.mark.native
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
@pytest.mark.parametrize(("variant", "temperature"), [(2, 1.0), (4, 2.0)])
def test_grad_cache(
    variant: int, temperature: float, benchmark: Callable[[str], ModuleType]
) -> None:
    """Both gradients match the whole batch's, but accumulation scales that of the temperature."""
    pytest.importorskip("open_clip", exc_type=Exception)
    (figures,) = benchmark("grad_cache").measured(variant, "mini", 256, rounds=1)
    assert figures.error < 1e-5
    assert figures.temperature == pytest.approx(temperature, rel=1e-4)
    assert figures.peak_bytes > 0


@pytest.fixture
def gpu_plan(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a plan for tiny batches on the CPU, without collecting the heap of all tests."""
    monkeypatch.setattr("gc.collect", lambda: 0)
    gpu = benchmark("gpu")
    options = gpu.parse(["--device", "cpu", "--sizes", "32", "--widths", "8"])
    options.peers = ["dense", "cyclip_ext", "cut-cross-entropy", "torch, linear_cross_entropy"]
    return dataclasses.replace(gpu.plan_of(options), rounds=2, error_rows=32)


@pytest.mark.native
@pytest.mark.parametrize("stage", ["facts", "right", "same", "time", "engines", "kernels", "peers"])
def test_stages_of_the_gpu_program(
    stage: str, gpu_plan: object, benchmark: Callable[[str], ModuleType]
) -> None:
    """Time on a GPU is short, so each stage of the program is tested on the CPU first."""
    program = benchmark("gpu")
    lines = list(program.STAGES[stage](gpu_plan))
    assert lines
    assert all(set(line) == set(program.COLUMNS) for line in lines)
    allowed = ("ok", "skipped: needs", "not installed", "needs torch")
    assert all(str(line["status"]).startswith(allowed) for line in lines), lines


@pytest.mark.native
def test_stage_same_compares_in_the_precision_of_its_line(
    gpu_plan: object, benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = benchmark("gpu_checks")
    in_use = {"status": lambda loss, batch: torch.get_float32_matmul_precision()}
    monkeypatch.setattr(stages, "SAMENESS", in_use)
    found = {line["precision"]: line["status"] for line in stages.same(gpu_plan)}
    assert found == {"bf16": "highest", "fp16": "highest", "tf32": "high", "float32": "highest"}


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stage_right_finds_errors_of_one_percent(
    dtype: torch.dtype, benchmark: Callable[[str], ModuleType]
) -> None:
    """Dense code in 16 bits cannot be the measure: the sum of these losses overflows in float16."""
    correctness, inputs = benchmark("correctness"), benchmark("inputs")
    batch = inputs.make_batch(300, 48, 100.0, correctness.BIAS, dtype, torch.device("cpu"))
    right = correctness.LOSSES[1]
    wrong = dataclasses.replace(right, native=lambda b: 1.01 * right.native(b))
    findings = list(correctness._check_loss(wrong, batch, ""))
    assert all(finding.share > 1 for finding in findings), findings


@pytest.mark.native
def test_failing_shape_does_not_end_the_checks(
    gpu_plan: object, benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time on a GPU is short, so one run must show all failures."""
    stages = benchmark("gpu_checks")
    check = stages.check

    def spoilt(device: object, shape: tuple[int, int]) -> object:
        findings = check(device, shape)
        yield next(findings)
        if shape == (5, 7):
            raise RuntimeError("too many resources\nrequested for launch")
        yield from findings

    monkeypatch.setattr(stages, "check", spoilt)
    lines = list(stages.right(gpu_plan))
    bad = [line for line in lines if line["status"] != "ok"]
    assert [(line["N"], line["d"]) for line in bad] == [(5, 7)]
    assert bad[0]["status"] == "failed: RuntimeError: too many resources requested for launch"
    assert {(line["N"], line["d"]) for line in lines} == set(stages.SHAPES)


@pytest.mark.native
def test_gpu_program_survives_a_stage_that_dies(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sticky error of the device must not cost the results of the other stages."""
    gpu, results = benchmark("gpu"), benchmark("results")
    monkeypatch.chdir(ROOT)
    arguments = ["--device", "cpu", "--stages", "facts", "same", "--families", "clip"]
    arguments += ["--precisions", "bf16", "--sizes", "-1", "--csv", str(tmp_path / "results.csv")]
    assert gpu.main(arguments) == 1
    lines = results.read(tmp_path / "results.csv")
    assert {line["stage"] for line in lines if line["status"] == "ok"} == {"facts"}
    assert [line["status"] for line in lines if line["stage"] == "same"] == ["ended with 1"]
    assert all(line["device"] for line in lines)


@pytest.mark.native
def test_gpu_program_compares_the_engines(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each engine is measured in a process of its own, with errors beside times."""
    gpu, results = benchmark("gpu"), benchmark("results")
    monkeypatch.chdir(ROOT)
    arguments = ["--device", "cpu", "--stages", "engines", "--families", "siglip"]
    arguments += ["--precisions", "bf16", "float32", "--sizes", "32", "--widths", "8"]
    assert gpu.main([*arguments, "--csv", str(tmp_path / "results.csv")]) == 0
    lines = results.read(tmp_path / "results.csv")
    operators = ["sigmoid_rows forward", "sigmoid_rows backward"]
    measured = [f"{engine}, {name}" for engine in ("hopper", "portable") for name in operators]
    assert [line["name"] for line in lines] == measured + operators
    assert {line["status"] for line in lines} == {"ok"}
    assert [bool(line["loss_error"]) for line in lines] == [True, False] * 2 + [False] * 2
    assert [bool(line["grad_error"]) for line in lines] == [False, True] * 2 + [False] * 2
    assert all("of portable's time" in line["note"] for line in lines[4:])
