"""Fixtures for tests that need open_clip, skipped if it or its torchvision cannot be imported."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from .tiny import ARCHITECTURE


@pytest.fixture
def open_clip() -> ModuleType:
    try:
        import open_clip
    except Exception as error:
        pytest.skip(f"open_clip does not import: {error}")
    return open_clip


@pytest.fixture
def architecture(open_clip: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "tiny-ViT.json"
    path.write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(path)
    return path
