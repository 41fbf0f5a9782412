"""Tests of the checks of PTX for compute capability 9.0a: planted faults are found."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A producer and a consumer, whose epilogue uses the stage, and memory behind the mbarriers.
KERNEL = """
.entry kernel(.param .align 128 .b8 maps[256])
.maxntid 256, 1, 1
{
  .reg .pred %p<9>;
  .reg .b32 %r<99>;
  .reg .b64 %rd<9>;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, memory;
  add.s32 %r3, %r2, 16384; // full
  add.s32 %r4, %r2, 16392; // empty
  mov.u32 %r5, 1;
  setp.ne.s32 %p1, %r1, 0;
  @%p1 bra $ready;
  mbarrier.init.shared::cta.b64 [%r3], %r5;
  mbarrier.init.shared::cta.b64 [%r4], %r5;
  fence.mbarrier_init.release.cluster;
$ready:
  bar.sync 0;
  mov.u32 %r90, 0;
  shr.u32 %r6, %r1, 7;
  shfl.sync.idx.b32 %r7|%p2, %r6, 0, 31, -1;
  add.s32 %r8, %r7, -1; // the number of the consumer
  setp.lt.s32 %p3, %r7, 1;
  @%p3 bra $producer;

$tile:
  mad.lo.s32 %r10, %r8, 512, %r2;
  and.b32 %r11, %r1, 127;
  shl.b32 %r12, %r11, 2;
  add.s32 %r13, %r10, %r12;
  st.shared.f32 [%r13+16400], %f9;
  {
    .reg .pred done;
    again:
    mbarrier.try_wait.parity.shared::cta.b64 done, [%r3], %r90;
    @!done bra again;
  }
  wgmma.fence.sync.aligned;
  {
    .reg .pred p;
    setp.ne.b32 p, %r90, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16
      {%f1, %f2, %f3, %f4}, %rd1, %rd2, p, 1, 1, 0, 0;
  }
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  mul.f32 %f5, %f1, %f2;
  mad.lo.s32 %r14, %r90, 8192, %r2;
  add.s32 %r15, %r14, %r12;
  mov.u32 %r16, 3;
  st.shared.f32 [%r15], %f5;
  barrier.cta.sync.aligned %r16, 128;
  ld.shared.f32 %f6, [%r15+4];
  fence.proxy.async.shared::cta;
  barrier.cta.sync.aligned %r16, 128;
  setp.ne.s32 %p4, %r11, 0;
  @%p4 bra $next;
  mbarrier.arrive.shared::cta.b64 _, [%r4];
$next:
  xor.b32 %r90, %r90, 1;
  setp.lt.f32 %p5, %f6, 0f00000000;
  @%p5 bra $tile;
  ret;

$producer:
  @%p1 bra $done;
$copy:
  {
    .reg .pred done;
    again:
    mbarrier.try_wait.parity.shared::cta.b64 done, [%r4], %r90;
    @!done bra again;
  }
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 8192;
  mad.lo.s32 %r20, %r90, 8192, %r2;
  cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes
    [%r20], [%rd3, {%r90, %r90}], [%r3];
  xor.b32 %r90, %r90, 1;
  bra.uni $copy;
$done:
  ret;
}
"""

STORE = "  st.shared.f32 [%r15], %f5;\n"
FENCE = "  fence.proxy.async.shared::cta;\n"
WGMMA_FENCE = "  wgmma.fence.sync.aligned;\n"
COMMIT = "  wgmma.commit_group.sync.aligned;\n"
WAIT = "  wgmma.wait_group.sync.aligned 0;\n"
NEXT, COPY = "$next:\n", "$copy:\n"

# Name: replacements in the kernel, and what is found.
FAULTS = {
    "store without fence": (
        {FENCE: ""},
        r"st\.shared\.f32 .* reaches mbarrier\.arrive.* without fence\.proxy\.async",
    ),
    "load without fence": ({FENCE: ""}, r"ld\.shared\.f32 .* reaches mbarrier\.arrive"),
    "fence of global memory": (
        {FENCE: "  fence.proxy.async.global;\n"},
        r"st\.shared\.f32 .* reaches mbarrier\.arrive",
    ),
    "fence in some threads": (
        {FENCE: "  @%p4 fence.proxy.async.shared::cta;\n"},
        r"st\.shared\.f32 .* reaches mbarrier\.arrive",
    ),
    "path around the fence": (
        {FENCE: f"  @%p5 bra $around;\n{FENCE}$around:\n"},
        r"st\.shared\.f32 .* reaches mbarrier\.arrive",
    ),
    "store after the fence": (
        {FENCE: FENCE + STORE.replace("f5", "f7")},
        r"st\.shared\.f32 .* reaches mbarrier\.arrive",
    ),
    "arrival before the fence": (
        {FENCE: "  barrier.cta.arrive.aligned 5, 256;\n" + FENCE},
        r"st\.shared\.f32 .* reaches barrier\.cta\.arrive",
    ),
    "barrier of both roles before the fence": (
        {
            STORE: STORE + "  barrier.cta.sync.aligned 5, 256;\n",
            COPY: COPY + "  bar.sync 5, 256;\n",
        },
        r"st\.shared\.f32 .* reaches mbarrier\.arrive\.expect_tx",
    ),
    "store of the producer": (
        {COPY: COPY + "  st.shared.u32 [%r20], %r1;\n"},
        r"st\.shared\.u32 .* reaches mbarrier\.arrive",
    ),
    "unknown address": (
        {NEXT: "  st.f32 [%rd4], %f5;\n" + NEXT},
        r"st\.f32 .* reaches wgmma\.mma_async",
    ),
    "memory that overlaps the stage": (
        {"%r13+16400": "%r13+16380"},
        r"st\.shared\.f32 .* reaches wgmma\.mma_async",
    ),
    "store to the memory of a bulk store": (
        {
            NEXT: "  add.s32 %r31, %r2, 16400;\n"
            "  cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd3, {%r90, 0}], [%r31];\n"
            f"{NEXT}",
        },
        r"st\.shared\.f32 .* reaches wgmma\.mma_async",
    ),
    "mbarrier without fence": (
        {"  fence.mbarrier_init.release.cluster;\n": ""},
        r"mbarrier\.init.* reaches bar\.sync .* without fence\.mbarrier_init",
    ),
    "wgmma without fence": ({WGMMA_FENCE: ""}, r"wgmma\.mma_async.* has no wgmma\.fence"),
    "accumulators changed after the fence": (
        {WGMMA_FENCE: WGMMA_FENCE + "  mul.f32 %f1, %f1, %f9;\n"},
        r"wgmma\.mma_async.* has no wgmma\.fence",
    ),
    "wgmma without commit": ({COMMIT: ""}, r"wait_group.* waits for products without commit_group"),
    "wgmma without wait": ({WAIT: ""}, r"mul\.f32 .* uses the accumulators of products"),
    "wait for an earlier group": (
        {WAIT: WAIT.replace("0", "1")},
        r"mul\.f32 .* uses the accumulators of products",
    ),
    "end before the wait": (
        {COMMIT: COMMIT + "  @%p4 ret;\n"},
        r"ret .* ends the thread before its products are complete",
    ),
    "no wait in a loop": (
        {COMMIT: COMMIT + "  @%p4 bra $tile;\n"},
        r"commit_group.* leaves more than 7 groups",
    ),
    "call": ({NEXT: "  call.uni function;\n" + NEXT}, r"call\.uni .* is not followed"),
}


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return a function that checks the text of one kernel."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    check = importlib.import_module("benchmarks.async_order").findings
    return lambda text: check(text, ["memory"])


def test_correct_kernel_passes(findings: Callable[[str], list[str]]) -> None:
    assert findings(KERNEL) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, findings: Callable[[str], list[str]]) -> None:
    text, (replacements, expected) = KERNEL, FAULTS[fault]
    for old, new in replacements.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    found = findings(text)
    assert any(re.search(expected, problem) for problem in found), found
