"""Every causal language model of transformers is a row of the table of families, or is left out for a reason."""

import importlib.metadata
import json

import pytest

from tests.helpers.families import FAMILIES
from tests.helpers.other_types import OTHER_TYPES
from tests.house.tree import ROOT


def test_every_causal_model_of_transformers_is_a_row_or_is_left_out_for_a_reason():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    rows = json.loads((ROOT / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8"))
    version = importlib.metadata.version("transformers")
    if {row["versions"]["transformers"] for row in rows["results"]} != {version}:
        pytest.skip(f"the rows are not of transformers {version}")
    tried = {family.model_type for family in FAMILIES.values()}
    left_out = [model_type for types in OTHER_TYPES.values() for model_type in types]
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert sorted(known - tried - set(left_out)) == [], "add a row, or a reason"
    assert sorted(set(left_out) - known) == [] and len(set(left_out)) == len(left_out)
    assert sorted(tried & set(left_out)) == []
