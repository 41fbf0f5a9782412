"""Tests of the CUDA kernels, on a GPU where there is one and under emulation everywhere.

Shared by the tests (no test functions here):
    conftest.py          the fixture `device`: every test runs on each
    devices.py           an operator call on a device, CPU tensors in and out
    emulation.py         builds and imports the emulated kernels (csrc/emulation)
    cases.py             precisions, shapes, and features as they lie in memory
    bounds.py            how far rounding may carry each result, to first order
    device_losses.py     the losses on top of a device's operators, with autograd

    test_devices.py           the two devices themselves: arguments and results of every operator
    test_row_norms.py         norms against the float64 truth
    test_pair_statistics.py   values and gradients against the float64 truth
    test_sigmoid.py           the same of the sigmoid loss
    test_cycle.py             both routes of the cycle terms
    test_retrieval.py         ranks and top-k, exactly
    test_accuracy.py          error at most twice that of dense PyTorch in the same precision
    test_layouts.py           pitch, alignment, panels, tile sizes; nothing is read beside
    test_policies.py          NaN, infinity, bad scales, zero rows, N = 1
    test_streams.py           other streams, CUDA graphs, two devices; on a GPU alone
    test_orders.py            the same bits in every run and in every order of the threads

The emulated kernels are built by cmake when the first test asks for them, or found in the folder
that CYCLIP_EMULATION_DIR names. Without cmake or pybind11 the emulated tests are skipped; with
CYCLIP_REQUIRE_EMULATION=1 they fail.

Not called `cuda`, because a package of that name holds the bindings that torch imports. What must
not live here: tests of the formulas or of the CPU operators (those are in `losses/`).
"""
