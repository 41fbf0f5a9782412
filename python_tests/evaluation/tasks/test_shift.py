"""Effective robustness against hand-computed values and SciPy's line and intervals."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from cyclip_ext.evaluation import read_baselines
from cyclip_ext.evaluation.tasks.shift import fit_baseline, inside, plot_baselines, wilson_interval

POINTS = [(0.30, 0.12), (0.45, 0.25), (0.62, 0.33), (0.71, 0.52)]


def test_line_is_fitted_to_logits() -> None:
    line = fit_baseline(POINTS)
    base, shifted = special.logit(list(zip(*POINTS, strict=True)))
    outside = stats.linregress(base, shifted)
    assert line.slope == pytest.approx(outside.slope)
    assert line.intercept == pytest.approx(outside.intercept)
    assert line.r_squared == pytest.approx(outside.rvalue**2)
    expected = special.expit(outside.slope * special.logit(0.9) + outside.intercept)
    assert line.predict(0.9) == pytest.approx(expected)


def test_baselines_are_on_their_own_line() -> None:
    line = fit_baseline([(0.2, 0.1), (0.5, 0.4)])
    assert [line.predict(base) for base, _ in line.points] == pytest.approx([0.1, 0.4])
    flat = fit_baseline([(0.2, 0.3), (0.5, 0.3)])
    assert (flat.slope, flat.r_squared) == (0, 1)


def test_too_few_baselines_are_rejected() -> None:
    for points in ([], [(0.5, 0.4)], [(0.5, 0.4), (0.5, 0.3)]):
        with pytest.raises(ValueError, match="at least 2 different base accuracies"):
            fit_baseline(points)


@pytest.mark.parametrize("accuracy", [0.0, 1.0, 61.5, math.nan])
def test_accuracies_without_a_logit_are_rejected(accuracy: float) -> None:
    with pytest.raises(ValueError, match=r"strictly between 0 and 1.*by half an image"):
        fit_baseline([(0.5, 0.4), (accuracy, 0.3)])


@pytest.mark.parametrize(
    ("accuracy", "images", "expected"),
    [(0, 50, 0.01), (1, 50, 0.99), (0.02, 50, 0.02), (1, 1, 0.5)],
)
def test_extremes_move_by_half_an_image(accuracy: float, images: int, expected: float) -> None:
    assert inside(accuracy, images) == expected


@pytest.mark.parametrize(("hits", "images"), [(0, 10), (3, 10), (10, 10), (1, 1), (7213, 10000)])
def test_interval_equals_the_formula(hits: int, images: int) -> None:
    z = stats.norm.ppf(0.975)
    share, n = hits / images, images
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert wilson_interval(hits, images) == pytest.approx((centre - half, centre + half), abs=1e-9)


def table(folder: Path, content: str) -> Path:
    path = folder / "baselines.csv"
    path.write_text(content)
    return path


def test_baselines_are_read_by_column(tmp_path: Path) -> None:
    path = table(tmp_path, "model,base, v2,sketch\na,0.5,0.4,0.1\nb,0.6,0.5,\n\nc,0.7,0.6,0.3\n")
    assert read_baselines(path) == {
        "v2": ((0.5, 0.4), (0.6, 0.5), (0.7, 0.6)),
        "sketch": ((0.5, 0.1), (0.7, 0.3)),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base\n0.5\n", 'line 1: a column "base" and one per shifted dataset expected'),
        ("v2,v3\n0.5,0.4\n", "line 1"),
        ("", "line 1"),
        ("base,v2\n0.5,0.4\n50,40\n", "line 3: accuracies must be shares"),
        ("base,v2\n0.5,many\n", "line 2: could not convert"),
        ("base,v2\n,0.4\n", "line 2"),
        ("base,v2\n0.5,\n", "has no accuracies"),
        ("base,v2\n0.5,nan\n", "line 2: .*got nan"),
        ("base,v2\n0.5,0,4\n", "line 2: more cells than columns"),  # a decimal comma
        ("base,v2,v2\n0.5,0.4,0.3\n", "line 1: .* each once"),
        ('base,v2,model\n0.5,0.4,"a\n0.6,0.5,b', "line 3: a cell has several lines"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_baselines(table(tmp_path, content))


def test_baselines_are_utf8_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "baselines.csv"
    path.write_bytes("model,base,v2\ncafé,0.5,0.4\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"baselines\.csv is not UTF-8"):
        read_baselines(path)
    path.write_bytes(b"\xef\xbb\xbfbase,v2\r\n0.5,0.4\r\n")
    assert read_baselines(path) == {"v2": ((0.5, 0.4),)}


def test_plot_shows_the_line_the_diagonal_and_all_points(render: Any) -> None:
    line = fit_baseline(POINTS)
    (axes,) = render(plot_baselines, line, (0.6, 0.5), ("ImageNet", "Sketch")).axes
    diagonal, fitted = axes.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    for x, y in zip(fitted.get_xdata(), fitted.get_ydata(), strict=True):
        assert special.expit(y) == pytest.approx(line.predict(special.expit(x)))
    baselines, model = axes.collections
    assert special.expit(np.asarray(baselines.get_offsets())) == pytest.approx(np.array(POINTS))
    assert special.expit(np.asarray(model.get_offsets())) == pytest.approx(np.array([(0.6, 0.5)]))
    assert "ImageNet" in axes.get_xlabel()
    assert "Sketch" in axes.get_ylabel()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["10", "20", "30", "50", "70"]
