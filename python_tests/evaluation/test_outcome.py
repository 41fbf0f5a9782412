"""Tables are rectangular."""

import pytest

from cyclip_ext.evaluation.outcome import Table


def test_row_of_another_length_is_refused() -> None:
    """Wrong: a row is shifted against its header, and the report shows numbers of other columns."""
    assert Table("t", ("a", "b"), ((1, 2.0), ("x", None))).rows[1] == ("x", None)
    with pytest.raises(ValueError, match=r"rows of 't' must have 2 cells, .* got 1: \('x',\)"):
        Table("t", ("a", "b"), ((1, 2.0), ("x",)))
