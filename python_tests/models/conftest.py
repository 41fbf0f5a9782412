"""open_clip where it imports; it does not beside a torch that its torchvision was not built for."""

from types import ModuleType

import pytest


@pytest.fixture
def open_clip() -> ModuleType:
    try:
        import open_clip
    except Exception as error:
        pytest.skip(f"open_clip does not import: {error}")
    return open_clip
