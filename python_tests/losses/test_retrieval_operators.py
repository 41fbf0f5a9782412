"""Retrieval ranks and streaming top-k against loops over a matrix in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cyclip_ext import _dispatch, functional, reference

from .inputs import make_features

SHAPES = [
    (1, 1, 1),
    (5, 7, 3),
    (7, 5, 1),
    (30, 71, 6),
    (129, 257, 13),
    (70, 1100, 8),
    (1100, 33, 5),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _rectangle(kind: str, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    """n images and m texts; at d = 1 of the values +-1, so that every cosine is exact."""
    image, text = make_features(kind if d > 1 else "ties", max(n, m), d, seed=n + 10 * m)
    return image[:n], text[:m]


def _labels(n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Several rows to a label on both sides, labels of any size, and some without a partner."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-(2**62), 2**62, (max(n, m) // 2 + 2,), generator=generator)
    return (
        values[torch.randint(len(values) - 1, (n,), generator=generator)],
        values[1 + torch.randint(len(values) - 1, (m,), generator=generator)],
    )


def _cosines(rows: Tensor, cols: Tensor) -> list[list[float]]:
    sim = reference.similarity(rows.double(), cols.double())
    return torch.where(sim.isnan(), -torch.inf, sim).tolist()


def _expected_ranks(sim: list[list[float]], row_labels: Tensor, col_labels: Tensor) -> list[int]:
    ranks = []
    columns = col_labels.tolist()
    for row, label in zip(sim, row_labels.tolist(), strict=True):
        own = [s for s, other in zip(row, columns, strict=True) if other == label]
        foreign = [s for s, other in zip(row, columns, strict=True) if other != label]
        ranks.append(sum(s >= max(own) for s in foreign) if own else -1)
    return ranks


def _assert_ranks(image: Tensor, text: Tensor, labels: tuple[Tensor, Tensor], backend: str) -> None:
    row_rank, col_rank = functional.retrieval_ranks(image, text, *labels, backend=backend)
    sim = _cosines(image, text)
    by_text = [list(column) for column in zip(*sim, strict=True)]
    assert row_rank.dtype == col_rank.dtype == torch.int64
    assert row_rank.tolist() == _expected_ranks(sim, *labels)
    assert col_rank.tolist() == _expected_ranks(by_text, *reversed(labels))


def _assert_top_k(query: Tensor, candidate: Tensor, k: int, backend: str, tolerance: float) -> None:
    values, indices = functional.similarity_top_k(query, candidate, k, backend=backend)
    assert values.shape == indices.shape == (len(query), k)
    assert (values.dtype, indices.dtype) == (torch.float64, torch.int64)
    for row, best, order in zip(
        _cosines(query, candidate), values.tolist(), indices.tolist(), strict=True
    ):
        assert order == sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k]
        assert best == pytest.approx([row[j] for j in order], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_ranks_match_loops(n: int, m: int, d: int, backend: str) -> None:
    """Several captions belong to one image, and some queries have no partner."""
    _assert_ranks(*_rectangle("random", n, m, d), _labels(n, m), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 8), (33, 600, 4), (600, 33, 1)])
def test_ties_count_against_the_model(
    n: int, m: int, d: int, dtype: torch.dtype, backend: str
) -> None:
    image, text = _rectangle("ties", n, m, d)
    _assert_ranks(image.to(dtype), text.to(dtype), _labels(n, m, seed=1), backend)


def test_collapsed_towers_and_missing_partners_are_no_hits(backend: str) -> None:
    same, labels = torch.ones(5, 4), torch.arange(5)
    for ranks in functional.retrieval_ranks(same, same, labels, labels, backend=backend):
        assert ranks.tolist() == [4] * 5
    for ranks in functional.retrieval_ranks(same, same, labels, labels + 5, backend=backend):
        assert ranks.tolist() == [-1] * 5
    for ranks in functional.retrieval_ranks(same, same, labels * 0, labels * 0, backend=backend):
        assert ranks.tolist() == [0] * 5


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_top_k_matches_loops(n: int, m: int, d: int, backend: str) -> None:
    query, candidate = _rectangle("random", n, m, d)
    for k in sorted({1, min(5, m), m}):
        _assert_top_k(query, candidate, k, backend, tolerance=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 8), (33, 600, 4), (5, 2500, 1)])
def test_top_k_of_ties_takes_the_first(
    n: int, m: int, d: int, dtype: torch.dtype, backend: str
) -> None:
    query, candidate = _rectangle("ties", n, m, d)
    for k in (1, 20, m):  # m: longer than the list of one part of the columns
        _assert_top_k(query.to(dtype), candidate.to(dtype), k, backend, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_nan_is_further_than_anything(dtype: torch.dtype, backend: str) -> None:
    query, candidate = (t.to(dtype) for t in _rectangle("ties", 20, 24, 8))
    query[3, 1] = torch.nan  # a whole row: every candidate is tied
    candidate[[0, 7, 23], 2] = torch.nan
    for k in (1, 22, 24):
        _assert_top_k(query, candidate, k, backend, tolerance=1e-6)
    _assert_ranks(query, candidate, _labels(20, 24), backend)
    labels = torch.arange(20), torch.arange(24)  # its only partner is NaN
    _assert_ranks(query, candidate, labels, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_ranks_and_top_k_agree(dtype: torch.dtype, backend: str) -> None:
    image, text = (t.to(dtype) for t in _rectangle("random", 100, 700, 16))
    image_labels, text_labels = _labels(100, 700)
    rank, _ = functional.retrieval_ranks(image, text, image_labels, text_labels, backend=backend)
    for k in (1, 10, 100):
        _, nearest = functional.similarity_top_k(image, text, k, backend=backend)
        hit = (text_labels[nearest] == image_labels[:, None]).any(dim=1)
        assert torch.equal(hit[rank >= 0], (rank < k)[rank >= 0])


def test_layouts_and_mixed_dtypes(backend: str) -> None:
    image, text = _rectangle("random", 30, 71, 6)
    image_labels, text_labels = _labels(30, 71)
    expected = [
        *functional.retrieval_ranks(image, text, image_labels, text_labels, backend=backend),
        *functional.similarity_top_k(image, text, 9, backend=backend),
    ]
    wide = torch.full((71, 9), torch.nan, dtype=torch.float64)
    wide[:, 2:8] = text
    strided = torch.stack([text_labels, text_labels + 1], dim=1)[:, 0]
    transposed = image.T.contiguous().T
    actual = [
        *functional.retrieval_ranks(
            transposed, wide[:, 2:8], image_labels, strided, backend=backend
        ),
        *functional.similarity_top_k(transposed, wide[:, 2:8], 9, backend=backend),
    ]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)
    low = image.bfloat16()
    for a, b in zip(
        functional.similarity_top_k(low, text, 9, backend=backend),
        functional.similarity_top_k(low.double(), text, 9, backend=backend),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_outputs_never_require_gradients(backend: str) -> None:
    image, text = (t.requires_grad_() for t in _rectangle("random", 5, 7, 3))
    labels = _labels(5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = [
            *functional.retrieval_ranks(image, text, *labels, backend=backend),
            *functional.similarity_top_k(image, text, 2, backend=backend),
        ]
    assert not any(out.requires_grad for out in outputs)


def test_compiled_retrieval_matches_eager(backend: str) -> None:
    torch._dynamo.reset()

    def function(image: Tensor, text: Tensor, labels: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [
            *functional.retrieval_ranks(image * 2, text, *labels, backend=backend),
            *functional.similarity_top_k(image * 2, text, 3, backend=backend),
        ]

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for n, m in ((5, 7), (9, 4)):
        arguments = (*_rectangle("random", n, m, 3), _labels(n, m))
        for a, b in zip(compiled(*arguments), function(*arguments), strict=True):
            torch.testing.assert_close(a, b)


def test_tf32_follows_torch() -> None:
    """Also in a compiled function, when torch's setting changes."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x + 1 if _dispatch.torch_allows_tf32() else x, backend="eager", fullgraph=True
    )
    before = torch.get_float32_matmul_precision()
    try:
        for precision, allowed in {"highest": 0, "high": 1, "medium": 1}.items():
            torch.set_float32_matmul_precision(precision)
            assert _dispatch.torch_allows_tf32() == allowed
            assert compiled(torch.zeros(1)) == allowed
            assert not _dispatch.allow_tf32(torch.ones(1, 1))  # on the CPU never
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_set_by_the_newer_of_two_interfaces(run_program: Callable[..., str]) -> None:
    """torch's older interface raises if both have been used."""
    program = (
        "import torch\n"
        "from cyclip_ext import _dispatch\n"
        "for precision in 'ieee', 'tf32':\n"
        "    torch.backends.cuda.matmul.fp32_precision = precision\n"
        "    print(_dispatch.torch_allows_tf32())\n"
    )
    assert run_program(program).split() == ["False", "True"]


X, LABELS = torch.ones(4, 3), torch.arange(4)
OTHER = torch.ones(5, 2)
RANKS, TOP_K = functional.retrieval_ranks, functional.similarity_top_k
BAD = [
    # (function, arguments, exception, words that the message must contain)
    (RANKS, (X, OTHER, LABELS, LABELS), ValueError, ["4, 3", "5, 2"]),
    (RANKS, (X, X, LABELS[:3], LABELS), ValueError, ["image_labels", "[4]", "[3]"]),
    (RANKS, (X, X, LABELS, LABELS[:, None]), ValueError, ["text_labels", "[4, 1]"]),
    (RANKS, (X, X, LABELS.double(), LABELS), TypeError, ["image_labels", "float64"]),
    (RANKS, (X, X, LABELS, [0, 1, 2, 3]), TypeError, ["text_labels", "list"]),
    (RANKS, (X, X, LABELS, LABELS.to("meta")), ValueError, ["text_labels", "cpu", "meta"]),
    (RANKS, (X[:0], X, LABELS[:0], LABELS), ValueError, ["image_features", "0, 3"]),
    (TOP_K, (X, X, 0), ValueError, ["k must", "4", "0"]),
    (TOP_K, (X[:2], X, 5), ValueError, ["k must", "4", "5"]),
    (TOP_K, (X, OTHER, 1), ValueError, ["query_features", "candidate_features"]),
    (TOP_K, (X, X.long(), 1), TypeError, ["candidate_features", "int64"]),
    (TOP_K, (X, X.to("meta"), 1), ValueError, ["query_features", "cpu", "meta"]),
]


@pytest.mark.parametrize(("function", "arguments", "exception", "words"), BAD)
def test_bad_arguments_raise(
    function: Callable, arguments: tuple, exception: type, words: list[str], backend: str
) -> None:
    with pytest.raises(exception) as error:
        function(*arguments, backend=backend)
    assert all(word in str(error.value) for word in words)


@pytest.mark.native
def test_retrieval_operators_check_their_arguments() -> None:
    for function, arguments, *_ in BAD:
        if not any(
            isinstance(a, list) or "meta" in str(getattr(a, "device", "")) for a in arguments
        ):
            operator = getattr(torch.ops.cyclip_ext, function.__name__)
            with pytest.raises((RuntimeError, ValueError), match=r"image_|text_|k must|candidate_"):
                operator(*arguments)


@pytest.mark.native
@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(65, 33, 7), (300, 1030, 513), (2500, 700, 24)])
def test_bits_do_not_depend_on_the_number_of_threads(
    n: int, m: int, d: int, dtype: torch.dtype
) -> None:
    image, text = (t.to(dtype) for t in _rectangle("narrow_cone", n, m, d))
    runs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        runs.append(
            [
                *torch.ops.cyclip_ext.retrieval_ranks(image, text, *_labels(n, m)),
                *torch.ops.cyclip_ext.similarity_top_k(image, text, 17),
            ]
        )
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
