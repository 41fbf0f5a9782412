"""The operators as torch sees them: opcheck, fake tensors, compile, autocast, inference mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import cyclip_ext
from cyclip_ext import functional

from .inputs import everything, make_features, make_leaves, random_like

ops = torch.ops.cyclip_ext


def _operator_calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Return arguments for every operator, forward and backward, and for those that take labels."""
    image, text = make_features("random", 5, 3, dtype=dtype)
    block = text[:4]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    scale, bias = torch.tensor(5.0, dtype=kind), torch.tensor(-2.0, dtype=kind)
    labels = torch.arange(5)
    same = labels // 2, labels[:4] // 3
    keep = (-1, False, False, 1 << 20)
    row_lse, col_lse, *others, row_index, col_index, dots = ops.pair_statistics(
        image, block, scale, *keep
    )
    weights = random_like((row_lse, col_lse, *others))
    rows, _ = ops.sigmoid_rows(image, block, scale, bias, -1)
    backward = {
        "pair_statistics_backward": (
            *(image, block, scale, -1, row_lse, col_lse, row_index, col_index, dots),
            *(*weights, True, False, True, False),
        ),
        "sigmoid_rows_backward": (
            *(image, block, scale, bias, -1, dots.new_empty(0, 0), *random_like((rows,))),
            *(False, True, True, False),
        ),
    }
    grams = ops.cycle_grams(image, text)
    *sums, products = ops.cycle_direct(image, text, 1 << 20)
    return {
        "row_norms": (image,),
        "pair_statistics": (image, block, scale, *keep),
        "pair_statistics, labels": (image, block, scale, *keep, True, *same),
        "pair_statistics, positives": (image, block, scale, *keep, True, *same, True),
        "sigmoid_rows": (image, block, scale, bias, *keep),
        "sigmoid_rows, labels": (image, block, scale, bias, *keep, *same, True),
        **backward,
        **{f"{name}, labels": (*arguments, *same) for name, arguments in backward.items()},
        "cycle_grams": (image, text, False),
        "cycle_grams_backward": (image, text, *random_like(tuple(grams))),
        "cycle_direct": (image, text, 1 << 20),
        "cycle_direct_backward": (image, text, products, *random_like(tuple(sums))),
        "retrieval_ranks": (image, block, labels, labels[1:], True),
        "similarity_top_k": (image, block, 3, True),
    }


OPERATORS = [
    "row_norms",
    *(
        name + direction
        for name in ("pair_statistics", "sigmoid_rows", "cycle_grams", "cycle_direct")
        for direction in ("", "_backward")
    ),
    "retrieval_ranks",
    "similarity_top_k",
]
CALLS = [
    *OPERATORS,
    *(f"{name}, labels" for name in OPERATORS if name.startswith(("pair", "sig"))),
    "pair_statistics, positives",
]


def _operator(call: str):
    return getattr(ops, call.partition(",")[0])


@pytest.mark.native
def test_every_operator_is_checked_here() -> None:
    registered = {
        schema.name.removeprefix("cyclip_ext::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("cyclip_ext::")
    }
    facts = {"cpu_isa", "dots_column_multiple", "cuda_engine"}
    assert registered - facts == set(OPERATORS)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    operator, arguments = _operator(name).default, _operator_calls(dtype)[name]
    torch.library.opcheck(operator, arguments)
    if "_backward" not in name:
        wanting = tuple(
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        )
        torch.library.opcheck(operator, wanting)


@pytest.mark.native
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_tensors_stay_on_their_device(name: str) -> None:
    arguments = _operator_calls(torch.float32)[name]
    with FakeTensorMode():  # no GPU is needed to pretend
        outputs = getattr(ops, name)(
            *(
                torch.empty(a.shape, dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
                for a in arguments
            )
        )
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    assert all(out.device.type == "cuda" for out in outputs)


class _Calls(TorchDispatchMode):
    """Dispatch mode that records the arguments of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "cyclip_ext":
            self.arguments[name] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.native
@pytest.mark.parametrize("precision", [(False, False), (True, False), (False, True)])
def test_backward_rounds_as_forward_does(precision: tuple[bool, bool]) -> None:
    image, text, scale, bias = make_leaves(6, 4)
    with _Calls() as calls:
        ops.pair_statistics(image, text, scale, 0, *precision)[0].sum().backward()
        ops.sigmoid_rows(image, text, scale, bias, 0, *precision)[0].sum().backward()
    rounding = {"pair_statistics_backward": slice(16, 18), "sigmoid_rows_backward": slice(9, 11)}
    for name, place in rounding.items():
        assert calls.arguments[name][place] == precision


def _compare_compiled(
    compiler: str, backend: str, shapes: list[tuple[int, int]], **options: object
) -> None:
    torch._dynamo.reset()

    def function(*inputs: Tensor) -> Tensor:
        # Something to fuse on both sides, and another upstream gradient than one.
        return 2 * everything(inputs[0] * 2, inputs[1].tanh(), *inputs[2:], backend)

    compiled = torch.compile(function, backend=compiler, fullgraph=True, **options)
    for n, d in shapes:
        results = []
        for call in function, compiled:
            leaves = make_leaves(n, d)
            value = call(*leaves)
            value.backward()
            results.append([value.detach(), *(leaf.grad for leaf in leaves)])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
def test_compiled_losses_match_eager(backend: str, dynamic: bool | None) -> None:
    _compare_compiled("aot_eager", backend, [(6, 4), (9, 4), (12, 4), (4, 6)], dynamic=dynamic)


BATCH_SIZES = 3, 4, 7, 16, 31, 40, 64, 100, 128, 200, 513, 1030


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.native
def test_two_graphs_serve_every_batch_size(gradients: bool) -> None:
    """torch compiles a function eight times at most: for the first size, and then for all."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(everything, backend=counter, fullgraph=True)
    for n in BATCH_SIZES:
        inputs = [t.detach().requires_grad_(gradients) for t in make_leaves(n, 40)]
        expected = everything(*inputs, "native")
        torch.testing.assert_close(compiled(*inputs, "native"), expected, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 2


class _Everything(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, *inputs: Tensor) -> Tensor:
        return everything(*inputs, self.backend)


def test_export_with_a_dynamic_batch(backend: str) -> None:
    module = _Everything(backend)
    inputs = tuple(t.detach() for t in make_leaves(6, 40))
    rows = {0: torch.export.Dim("rows")}
    exported = torch.export.export(module, inputs, dynamic_shapes=((rows, rows, None, None),))
    for n in BATCH_SIZES:
        inputs = [t.detach() for t in make_leaves(n, 40)]
        actual = exported.module()(*inputs)
        torch.testing.assert_close(actual, module(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.native
def test_inductor_matches_eager() -> None:
    _compare_compiled("inductor", "native", [(6, 4), (9, 4)])


def test_compiled_module_matches_eager(backend: str) -> None:
    torch._dynamo.reset()
    module = cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1, backend=backend, statistics=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    image, text, scale, _ = make_leaves(6, 4)
    expected = module(image, text, scale, output_dict=True)
    actual = compiled(image, text, scale, output_dict=True)
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    for n, d in ((9, 4), (4, 9)):
        outside, inside = make_leaves(n, d), make_leaves(n, d)
        expected = everything(*outside, backend)
        with torch.autocast("cpu", dtype=dtype):
            actual = everything(*inside, backend)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)
        expected.backward()
        actual.backward()
        for a, b in zip(inside, outside, strict=True):
            assert torch.equal(a.grad, b.grad)


def test_features_of_two_dtypes_under_autocast(backend: str) -> None:
    tower = torch.nn.Linear(5, 4)
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = tower(inputs)
        assert image.dtype == torch.bfloat16
        loss = everything(image, inputs[:, :4], torch.tensor(5.0), torch.tensor(-1.0), backend)
    loss.backward()
    assert tower.weight.grad.abs().sum() > 0


def test_no_grad_and_inference_mode_give_the_same_loss(backend: str) -> None:
    leaves = make_leaves(6, 4)
    expected = everything(*leaves, backend)
    with torch.no_grad():
        value = everything(*leaves, backend)
        assert not value.requires_grad
        assert torch.equal(value, expected)
    with torch.inference_mode():
        value = everything(*(t.detach().clone() for t in make_leaves(6, 4)), backend)
        assert value.is_inference()
        assert torch.equal(value, expected)


def test_backward_twice_over_a_retained_graph(backend: str) -> None:
    leaves = make_leaves(6, 4)
    value = everything(*leaves, backend)
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)], ids=str)
def test_activation_checkpointing_gives_the_same_gradients(
    backend: str, shape: tuple[int, int]
) -> None:
    """It raises if a backward function unpacks its saved tensors twice."""
    leaves = make_leaves(*shape)
    expected = torch.autograd.grad(everything(*leaves, backend), leaves)
    value = checkpoint(everything, *leaves, backend, use_reentrant=False)
    found = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_inputs_are_not_written_to(backend: str) -> None:
    leaves = make_leaves(6, 4)
    before = [t.detach().clone() for t in leaves]
    everything(*leaves, backend).backward()
    for leaf, old in zip(leaves, before, strict=True):
        assert torch.equal(leaf, old)
        assert leaf.grad.data_ptr() != leaf.data_ptr()


def test_features_changed_after_the_forward_raise(backend: str) -> None:
    image, text, scale, _ = make_leaves(6, 4)
    features = image * 1
    loss = functional.contrastive_loss(features, text, scale, backend=backend)
    with torch.no_grad():
        features.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_forward_mode_takes_the_reference(backend: str) -> None:
    """Operators by themselves would drop the tangent silently."""
    image, text = make_features("random", 6, 4)
    direction = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(features: torch.Tensor, which: str) -> torch.Tensor:
        return functional.contrastive_loss(features, text, 5.0, backend=which)

    if backend == "native":
        with pytest.raises(RuntimeError, match=r"forward-mode.*reference"):
            torch.func.jvp(lambda x: loss(x, "native"), (image,), (direction,))
    step = 1e-6 * direction
    difference = (loss(image + step, "reference") - loss(image - step, "reference")) / 2e-6
    for which in ("auto", "reference"):
        _, tangent = torch.func.jvp(lambda x, w=which: loss(x, w), (image,), (direction,))
        assert tangent == pytest.approx(difference.item(), rel=1e-6)


def test_second_derivative_of_a_single_pair_is_zero() -> None:
    image, text = (f.requires_grad_() for f in make_features("random", 1, 4))
    loss = functional.contrastive_loss(image, text, 5.0, backend="reference")
    first = torch.autograd.grad(loss, (image, text), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (image, text))
    assert all((g == 0).all() for g in (*first, *second))


@pytest.mark.parametrize("transform", ["grad", "vjp"])
def test_function_transforms_take_the_reference(transform: str, backend: str) -> None:
    image, text, scale, bias = (t.detach().double() for t in make_leaves(6, 4))

    def loss(features: Tensor, which: str) -> Tensor:
        return everything(features, text, scale, bias, which)

    def gradient(which: str) -> Tensor:
        if transform == "grad":
            return torch.func.grad(loss)(image, which)
        return torch.func.vjp(lambda x: loss(x, which), image)[1](torch.ones(()).double())[0]

    if backend == "native":
        with pytest.raises(RuntimeError, match=r"torch.func.*torch.autograd.grad.*'reference'"):
            gradient("native")
    leaf = image.clone().requires_grad_()
    loss(leaf, backend).backward()
    for which in "auto", "reference":
        torch.testing.assert_close(gradient(which), leaf.grad)


@pytest.mark.native
def test_flop_counters_see_the_operators() -> None:
    n, d = 64, 16
    image, text, scale, bias = make_leaves(n, d)
    product = 2 * n * n * d
    calls = {
        "kept": (functional.contrastive_loss, {"memory_budget": None}, 3 * product),
        "recomputed": (functional.contrastive_loss, {"memory_budget": 0}, 4 * product),
        "locked": (
            lambda x, y, s, **o: functional.contrastive_loss(x.detach(), y, s, **o),
            {"memory_budget": 0},
            3 * product,
        ),
        "sigmoid": (
            lambda x, y, s, **o: functional.sigmoid_loss(x, y, s, bias, **o),
            {"memory_budget": 0},
            4 * product,
        ),
        "cycle": (
            lambda x, y, s: functional.cycle_consistency(x, y, in_modal=0.1),
            {},
            (3 + 4) * 2 * n * d * d,
        ),
    }
    for name, (function, options, expected) in calls.items():
        with FlopCounterMode(display=False) as counter:
            function(image, text, scale, **options).backward()
        assert counter.get_total_flops() == expected, name
    with FlopCounterMode(display=False) as counter:
        functional.similarity_top_k(image, text[:10], 3)
    assert counter.get_total_flops() == 2 * n * 10 * d
