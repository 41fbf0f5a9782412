"""Tests of the losses.

Shared by the tests (no test functions here):
    inputs.py            features that break naive code
    truth.py             the formulas once more, in float64, exact where the reference cancels
    backends.py          which backends are present, and the marks that depend on it
    programs.py          programs in an interpreter of their own
    ranks.py             the processes of a group, each of which runs what it is told
    shares.py            one batch, computed by one process and by the ranks of a group

    test_reference.py    the specification itself, against loops, hand values and other libraries
    test_operators.py    every operator of torch.ops.cyclip_ext against truth.py, and gradcheck
    test_functional.py   every function, option and combination, against the reference
    test_layouts.py      strides, slices, expansions, scales of rows, shared storage
    test_properties.py   hypothesis: shapes, values and invariances nobody thought of
    test_accuracy.py     error at most twice that of dense PyTorch in the same precision
    test_tiny_losses.py  losses of 1e-30 that dense code rounds to zero
    test_retrieval_operators.py  ranks and top-k, which evaluation uses, against loops
    test_policies.py     NaN, inf, zero rows, N = 1
    test_errors.py       what a wrong argument is told
    test_memory.py       no N x N storage: saved tensors and peak
    test_determinism.py  the same bits in every run and for every number of threads
    test_torch.py        opcheck, fake tensors, torch.compile, autocast, derivatives of all kinds
    test_modules.py      the nn.Modules: dictionary, weights, statistics, open_clip's call
    test_distributed.py  over a group of processes: gradients of the whole batch, bits, mistakes
    test_grad_cache.py   the gradient of the whole batch, from chunks: dropout, batch norm, DDP
    test_import.py       import cyclip_ext needs torch alone

What must not live here: data, models, training; CUDA kernels have tests of their own.
"""
