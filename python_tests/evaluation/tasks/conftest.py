"""Fixtures for the tests of tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from cyclip_ext._plotting import png


@pytest.fixture
def render() -> Callable[..., Figure]:
    """Call a plot function and render its figure as a report does."""

    def rendered(plot: Callable[..., None], *arguments: Any) -> Figure:
        figures = []

        def draw(figure: Figure) -> None:
            figures.append(figure)
            plot(figure, *arguments)

        assert len(png(draw, (6.4, 4.0))) > 5000
        return figures[0]

    return rendered
