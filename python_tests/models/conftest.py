"""A fixture that skips a test if open_clip, or the torchvision beneath it, cannot be imported."""

from types import ModuleType

import pytest


@pytest.fixture
def open_clip() -> ModuleType:
    try:
        import open_clip
    except Exception as error:
        pytest.skip(f"open_clip does not import: {error}")
    return open_clip
