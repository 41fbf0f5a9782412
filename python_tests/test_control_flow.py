"""Tests of the count of instructions between the products of two tiles, in machine code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A tile: one product, a loop of products, the epilogue, which a consumer without rows skips. The
# second evaluation of exponentials is rarely executed.
TILES = """
.L_x_0:
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
.L_x_1:
    HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
    @P0 BRA `(.L_x_1) ;
    WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
    @P1 BRA `(.L_x_3) ;
    FMUL R24, R24, R2 ;
    MUFU.EX2 R24, R24 ;
    FADD R4, R4, R24 ;
    @!P2 BRA `(.L_x_2) ;
    MUFU.EX2 R25, R24 ;
    FADD R4, R4, R25 ;
.L_x_2:
    STG.E [R6.64], R4 ;
.L_x_3:
    IADD3 R8, R8, 0x1, RZ ;
    @P3 BRA `(.L_x_0) ;
    EXIT ;
"""


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int | None]:
    """Return a function that counts the instructions in a listing without addresses."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    counted = importlib.import_module("benchmarks.control_flow").epilogue_instructions

    def of_listing(text: str) -> int | None:
        lines = text.strip().splitlines()
        addressed = (
            f"/*{i:04x}*/ {line}" if line[0] == " " else line for i, line in enumerate(lines)
        )
        result: int | None = counted("\n".join(addressed))
        return result

    return of_listing


def test_path_through_the_epilogue_is_counted(count: Callable[[str], int | None]) -> None:
    """It neither skips the work of the tile nor takes the branch that is rarely executed."""
    assert count(TILES) == 11  # of 13 from the loop's last product to the next tile's first one
    assert count(TILES.replace("MUFU.EX2", "FADD")) == 11  # by the store
    assert count(TILES.replace("    @!P2 BRA `(.L_x_2) ;\n", "")) == 12


def test_kernel_without_products_has_no_count(count: Callable[[str], int | None]) -> None:
    assert count(TILES.replace("HGMMA", "FFMA")) is None
