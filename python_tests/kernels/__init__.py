"""Tests of the CUDA kernels, under emulation and on a GPU if there is one.

Shared by the tests:
    conftest.py          the fixture `device`: every test runs on each device
    devices.py           an operator call on a device, CPU tensors in and out
    emulation.py         builds and imports the emulated kernels (csrc/emulation)
    cases.py             precisions, shapes, and layouts of features in memory
    bounds.py            first-order bounds of the rounding error of each result
    device_losses.py     the losses on top of a device's operators, with autograd

    test_devices.py           the two devices themselves: arguments and results of every operator
    test_row_norms.py         norms against the float64 truth
    test_pair_statistics.py   values and gradients against the float64 truth
    test_sigmoid.py           the same for the sigmoid loss
    test_cycle.py             both routes of the cycle terms
    test_retrieval.py         ranks and top-k, exactly
    test_hopper.py            orders and long shapes on the engine for compute capability 9.0
    test_accuracy.py          error at most twice that of dense PyTorch in the same precision
    test_layouts.py           pitch, alignment, panels, tile sizes; no reads out of bounds
    test_policies.py          NaN, infinity, bad scales, zero rows, N = 1
    test_streams.py           other streams, CUDA graphs, two devices; only on a GPU
    test_orders.py            the same bits in every run and in every order of the threads

The first test that needs the emulated kernels builds them with cmake, unless CYCLIP_EMULATION_DIR
names a folder that contains them. Without cmake or pybind11 the emulated tests are skipped; with
CYCLIP_REQUIRE_EMULATION=1 they fail. Other variables change all tests under emulation:

    CYCLIP_EMULATE_LARGE_TILES=1     128 x 128 tiles; devices use them from N = 1,409 on
    CYCLIP_EMULATE_LARGE_TILES=2     pairs of them for 16-bit features; devices: from N = 3,969 on
    CYCLIP_EMULATE_HOPPER_BLOCKS=2   the engine for compute capability 9.0, in this many blocks
    CYCLIP_EMULATE_ORDER="RANDOM 3"  the order of threads; its seed also delays bulk copies

The folder is not called `cuda`, because torch imports a package of that name. Tests of the formulas
and of the CPU operators are in `losses/`.
"""
