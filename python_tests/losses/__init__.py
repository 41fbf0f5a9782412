"""Tests of the losses.

Shared by the tests (no test functions here):
    conftest.py          fixtures: backends, the losses by name, ranks
    inputs.py            features that break naive code, and the losses that are to survive them
    truth.py             the formulas once more, in float64, exact where the reference cancels
    ranks.py             the processes of a group, which stay and run functions
    shares.py            one batch, computed by one process and by the ranks of a group

    test_package.py      imports, exports, and which names the modules share
    test_reference.py    the specification itself, against loops, hand values and other libraries
    test_operators.py    every operator of torch.ops.cyclip_ext against truth.py, and gradcheck
    test_functional.py   every function, option and combination, against the reference
    test_modules.py      the nn.Modules: dictionary, weights, statistics, open_clip's call
    test_labels.py       labels, additional negatives, locked towers
    test_labels_distributed.py   the same in chunks and over ranks
    test_matryoshka.py   nested widths
    test_labels_cost.py  processor time of labels, as a ratio
    test_edge_cases.py   strides, norms, NaN, inf, zero rows, N = 1
    test_properties.py   hypothesis: shapes, arbitrary values, and invariances
    test_accuracy.py     error at most twice that of dense PyTorch in the same precision
    test_precision.py    bfloat16 products, and losses of 1e-30 that dense code rounds to zero
    test_retrieval_operators.py  ranks and top-k, which evaluation uses, against loops
    test_errors.py       messages for wrong arguments
    test_memory.py       no N x N storage: saved tensors, peak, and the memory budget
    test_determinism.py  the same bits in every run and for every number of threads
    test_torch.py        opcheck, fake tensors, compile, export, autocast, derivatives of all kinds
    test_distributed.py  over a group of processes: gradients of the whole batch, bits, memory
    test_groups.py       every form of a group, and mistakes that all ranks must notice
    test_grad_cache.py   the gradient of the whole batch, from chunks: dropout, batch norm, DDP

What must not live here: data, models, training; CUDA kernels have tests of their own.
"""
