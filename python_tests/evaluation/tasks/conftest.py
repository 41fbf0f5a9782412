"""Fixtures for the tests of tasks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@pytest.fixture
def render() -> Callable[..., Figure]:
    """Call a plot function and render its figure at the size of a report."""

    def rendered(plot: Callable[..., None], *arguments: Any) -> Figure:
        figure = Figure(figsize=(6.4, 4.0))
        FigureCanvasAgg(figure)
        plot(figure, *arguments)
        with io.BytesIO() as file:
            figure.savefig(file, format="png")
            assert len(file.getvalue()) > 5000
        return figure

    return rendered
