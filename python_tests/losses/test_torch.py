"""The operators as torch sees them: opcheck, fake tensors, compile, autocast, inference mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import cyclip_ext
from cyclip_ext import functional

from .backends import BACKENDS, needs_native
from .inputs import make_features, random_like

ops = torch.ops.cyclip_ext


def _operator_calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments for every operator, forward and backward."""
    image, text = make_features("random", 5, 3, dtype=dtype)
    block = text[:4]
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    scale, bias = torch.tensor(5.0, dtype=kind), torch.tensor(-2.0, dtype=kind)
    labels = torch.arange(5)
    keep = (-1, False, False, 1 << 20)
    row_lse, col_lse, *others, row_index, col_index, dots = ops.pair_statistics(
        image, block, scale, *keep
    )
    weights = random_like((row_lse, col_lse, *others))
    rows, _ = ops.sigmoid_rows(image, block, scale, bias, -1)
    grams, sums = ops.cycle_grams(image, text), ops.cycle_direct(image, text)
    return {
        "row_norms": (image,),
        "pair_statistics": (image, block, scale, *keep),
        "pair_statistics_backward": (
            *(image, block, scale, -1, row_lse, col_lse, row_index, col_index, dots),
            *(*weights, True, False, True, False),
        ),
        "sigmoid_rows": (image, block, scale, bias, *keep),
        "sigmoid_rows_backward": (
            image,
            block,
            scale,
            bias,
            -1,
            dots.new_empty(0, 0),
            *random_like((rows,)),
            False,
            True,
            True,
            False,
        ),
        "cycle_grams": (image, text, False),
        "cycle_grams_backward": (image, text, *random_like(tuple(grams))),
        "cycle_direct": (image, text),
        "cycle_direct_backward": (image, text, *random_like(tuple(sums))),
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


@needs_native
def test_every_operator_is_listed() -> None:
    """Wrong: an operator was added and none of the checks of this file knows it."""
    registered = {
        schema.name.removeprefix("cyclip_ext::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("cyclip_ext::")
    }
    assert registered == {*OPERATORS, "dots_column_multiple"}  # a constant


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    """Wrong: schema (aliasing, mutation), fake kernel, autograd registration, or tracing."""
    operator, arguments = getattr(ops, name).default, _operator_calls(dtype)[name]
    torch.library.opcheck(operator, arguments)
    if not name.endswith("_backward"):
        wanting = tuple(
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in arguments
        )
        torch.library.opcheck(operator, wanting)


@needs_native
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_tensors_have_the_real_shapes(name: str) -> None:
    """Wrong: shape, dtype or device of an output, as torch.compile will believe them."""
    arguments = _operator_calls(torch.bfloat16)[name]
    real = getattr(ops, name)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(ops, name)(
            *(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments)
        )
    real, fake = ((out,) if isinstance(out, Tensor) else tuple(out) for out in (real, fake))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


@needs_native
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_tensors_stay_on_their_device(name: str) -> None:
    """Wrong: torch.compile believes that an output of a GPU operator is on the CPU."""
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
    """Writes down the arguments of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "cyclip_ext":
            self.arguments[name] = args
        return function(*args, **(kwargs or {}))


@needs_native
@pytest.mark.parametrize("precision", [(False, False), (True, False), (False, True)])
def test_backward_rounds_as_forward_does(precision: tuple[bool, bool]) -> None:
    """Wrong: the backward pass takes another precision than the forward pass was given."""
    image, text, scale, bias = _leaves(6, 4)
    with _Calls() as calls:
        ops.pair_statistics(image, text, scale, 0, *precision)[0].sum().backward()
        ops.sigmoid_rows(image, text, scale, bias, 0, *precision)[0].sum().backward()
    for name in "pair_statistics_backward", "sigmoid_rows_backward":
        assert calls.arguments[name][-2:] == precision


def _everything(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    loss = cyclip_ext.CyCLIPLoss(0.3, 0.2, margin=0.1, hinge=0.4, backend=backend)
    return loss(image, text, scale) + functional.sigmoid_loss(
        image, text, scale, bias, backend=backend
    )


def _leaves(n: int, d: int) -> list[Tensor]:
    image, text = make_features("random", n, d, dtype=torch.float32)
    return [t.requires_grad_() for t in (image, text, torch.tensor(14.3), torch.tensor(-5.0))]


def _compare_compiled(compiler: str, backend: str, **options: object) -> None:
    torch._dynamo.reset()

    def function(*inputs: Tensor) -> Tensor:
        # Something to fuse on both sides, and another upstream gradient than one.
        return 2 * _everything(inputs[0] * 2, inputs[1].tanh(), *inputs[2:], backend)

    compiled = torch.compile(function, backend=compiler, fullgraph=True, **options)
    for n, d in ((6, 4), (9, 4), (12, 4), (4, 6)):
        results = []
        for call in function, compiled:
            leaves = _leaves(n, d)
            value = call(*leaves)
            value.backward()
            results.append([value.detach(), *(leaf.grad for leaf in leaves)])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend: str, dynamic: bool | None) -> None:
    """Wrong: a graph break, a wrong trace, or a shape fixed at its first value."""
    _compare_compiled("aot_eager", backend, dynamic=dynamic)


@pytest.mark.slow
@needs_native
def test_compile_with_inductor() -> None:
    """Wrong: the compiler that people use cannot take the operators."""
    _compare_compiled("inductor", "native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_module(backend: str) -> None:
    """Wrong: the module with statistics and dictionary cannot be compiled as a whole."""
    torch._dynamo.reset()
    module = cyclip_ext.CyCLIPLoss(margin=0.1, hinge=0.1, backend=backend, statistics=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    image, text, scale, _ = _leaves(6, 4)
    expected = module(image, text, scale, output_dict=True)
    actual = compiled(image, text, scale, output_dict=True)
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    """Wrong: inside an autocast region the products of the loss are rounded to 16 bits."""
    for n, d in ((9, 4), (4, 9)):
        outside, inside = _leaves(n, d), _leaves(n, d)
        expected = _everything(*outside, backend)
        with torch.autocast("cpu", dtype=dtype):
            actual = _everything(*inside, backend)
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)
        expected.backward()
        actual.backward()
        for a, b in zip(inside, outside, strict=True):
            assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_that_autocast_made(backend: str) -> None:
    """Wrong: bfloat16 features from an autocast tower against a float32 tower raise."""
    tower = torch.nn.Linear(5, 4)
    inputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = tower(inputs)
        assert image.dtype == torch.bfloat16
        loss = _everything(image, inputs[:, :4], torch.tensor(5.0), torch.tensor(-1.0), backend)
    loss.backward()
    assert tower.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(backend: str) -> None:
    """Wrong: evaluation under no_grad or inference_mode fails, builds a graph, or differs."""
    leaves = _leaves(6, 4)
    expected = _everything(*leaves, backend)
    with torch.no_grad():
        value = _everything(*leaves, backend)
        assert not value.requires_grad
        assert torch.equal(value, expected)
    with torch.inference_mode():
        value = _everything(*_leaves_in_inference(), backend)
        assert value.is_inference()
        assert torch.equal(value, expected)


def _leaves_in_inference() -> list[Tensor]:
    return [t.detach().clone() for t in _leaves(6, 4)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_twice_over_a_retained_graph(backend: str) -> None:
    """Wrong: the backward pass destroys or accumulates into what the graph saved."""
    leaves = _leaves(6, 4)
    value = _everything(*leaves, backend)
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(value, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_are_not_written_to(backend: str) -> None:
    """Wrong: a kernel normalizes in place, or a gradient shares memory with its input."""
    leaves = _leaves(6, 4)
    before = [t.detach().clone() for t in leaves]
    _everything(*leaves, backend).backward()
    for leaf, old in zip(leaves, before, strict=True):
        assert torch.equal(leaf, old)
        assert leaf.grad.data_ptr() != leaf.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_changed_after_the_forward_are_noticed(backend: str) -> None:
    """Wrong: a saved feature changed in place gives a silent wrong gradient."""
    image, text, scale, _ = _leaves(6, 4)
    features = image * 1
    loss = functional.contrastive_loss(features, text, scale, backend=backend)
    with torch.no_grad():
        features.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend: str) -> None:
    """Wrong: the tangent is dropped without a word, which is what operators do by themselves."""
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


def test_second_derivative_of_a_single_pair() -> None:
    """Wrong: the logarithm of no negatives leaves NaN in what is a constant zero."""
    image, text = (f.requires_grad_() for f in make_features("random", 1, 4))
    loss = functional.contrastive_loss(image, text, 5.0, backend="reference")
    first = torch.autograd.grad(loss, (image, text), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (image, text))
    assert all((g == 0).all() for g in (*first, *second))


@pytest.mark.parametrize("scale", [1e7, float("inf"), float("nan")])
@needs_native
def test_scales_beyond_reason(scale: float) -> None:
    """Wrong: a scale that leaves the kernels' range gives a finite number."""
    features = make_features("random", 4, 3)
    assert functional.contrastive_loss(*features, scale, backend="native").isnan()
    assert functional.sigmoid_loss(*features, scale, 0.0, backend="native").isnan()
