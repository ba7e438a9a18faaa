"""Margins of pairs: numbers, or a sentence with the row."""

import math
from collections import Counter

import numpy as np
import pytest

from trainer.config.data import ColumnsConfig, Format, SourceConfig
from trainer.data.rows.margin import row_margin
from trainer.data.rows.preferred import parse_answers
from trainer.data.types import RowError


@pytest.mark.parametrize("value", [0, 2, -1.5, 0.1])
def test_a_margin_is_a_number_as_float32_keeps_it(value):
    assert row_margin(value, "margin") == float(np.float32(value))


@pytest.mark.parametrize("value", ["much", None, True, [1], math.nan, math.inf, 1e39, 10**400, "0.5"])
def test_a_margin_that_is_not_a_number_is_refused(value):
    with pytest.raises(RowError) as caught:
        row_margin(value, "gap")
    assert caught.value.rule == "hold a number in column 'gap'" and "0.5" in caught.value.fix


def test_a_pair_carries_the_margin_of_its_row_and_0_without_one():
    row = {"prompt": "a?", "chosen": "b", "rejected": "c", "gap": 0.75}
    named = SourceConfig(format=Format.preference, columns=ColumnsConfig(margin="gap"))
    assert parse_answers(row, named, Counter()).margin == 0.75
    assert parse_answers(row, SourceConfig(format=Format.preference), Counter()).margin == 0.0
