"""Rows for a reward model: every kind is read as training would read it, and written with its scores."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from trainer.errors import DataError
from trainer.model.tiny import build_tokenizer
from trainer.model.tokenizer import Tokenizer
from trainer.sample.scored_rows import RowToScore, best_of, read_rows, with_scores
from trainer.sample.scoring import score_rows

ROWS = [
    {"prompt": "a?", "chosen": "bb", "rejected": "c"},
    {"prompt": "a?", "completion": "bb"},
    {"messages": [{"role": "user", "content": "a?"}], "answers": ["bb", "c"]},
    {"prompt": "a?", "chosen": "b", "rejected": "b"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(build_tokenizer())


def read(tmp_path, rows, tokenizer, as_chat=True, longest=None):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_rows(path, tokenizer, as_chat, longest))


def test_an_answer_has_the_tokens_of_its_rendering_whatever_row_it_is_in(tmp_path, tokenizer):
    pair, one, several, same = read(tmp_path, ROWS, tokenizer)
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "bb"}]
    rendered = tokenizer.render_chat(turns)
    wanted = tuple(tokenizer.encode_fragments([rendered])[0])
    assert pair.tokens_A[0] == one.tokens_A[0] == several.tokens_A[0] == wanted
    assert pair.tokens_A[1] == several.tokens_A[1] != wanted
    assert same.dropped == "equal_sides" and same.tokens_A == ()
    (text,) = read(tmp_path, ROWS[1:2], tokenizer, as_chat=False)
    assert text.tokens_A[0][-1] == tokenizer.eos_id, "a text ends with EOS, as in training"
    (long,) = read(tmp_path, ROWS[:1], tokenizer, longest=3)
    assert long.dropped == "longer than the model's 3 tokens"


def test_rows_are_written_with_what_they_scored(tmp_path, tokenizer):
    pair, one, several, same = read(tmp_path, ROWS, tokenizer)
    assert with_scores(pair, [1.0, 2.0]) == ROWS[0] | {"score_chosen": 1.0, "score_rejected": 2.0}
    assert with_scores(one, [0.5]) == ROWS[1] | {"score": 0.5}
    assert with_scores(several, [0.5, 2.0]) == ROWS[2] | {"scores": [0.5, 2.0]}
    assert with_scores(same, []) == ROWS[3] | {"dropped": "equal_sides"}


def test_the_best_of_several_is_a_conversation_and_a_pair_with_its_margin(tmp_path, tokenizer):
    several = read(tmp_path, ROWS, tokenizer)[2]
    learnt, pair = best_of(several, [0.5, 2.0])
    assert learnt["messages"] == [*ROWS[2]["messages"], {"role": "assistant", "content": "c"}]
    assert pair == {"prompt": ROWS[2]["messages"], "chosen": "c", "rejected": "bb", "margin": 1.5}
    learnt, pair = best_of(several, [1.0, 1.0])
    assert learnt["messages"][-1]["content"] == "bb" and pair is None, "a tie makes no pair"


def test_an_empty_answer_of_several_leaves_the_others_to_be_scored(tmp_path, tokenizer):
    row = {"prompt": "a?", "answers": ["", "bb", "c"]}
    several, none = read(tmp_path, [row, row | {"answers": ["", ""]}], tokenizer)
    assert several.tokens_A[0] == () and all(several.tokens_A[1:]) and not several.dropped
    assert none.dropped == "no answer"
    scores = [math.nan, 2.0, 0.5]
    assert with_scores(several, scores)["scores"] == [None, 2.0, 0.5]
    learnt, pair = best_of(several, scores)
    assert learnt["num_answers"] == 2 and learnt["messages"][-1]["content"] == "bb"
    assert (pair["chosen"], pair["rejected"], pair["margin"]) == ("bb", "c", 1.5)


class BFloat16Scorer(torch.nn.Module):
    """Scores by the last token's row of a table, whose product with the weights bf16 rounds to 1."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([[1.0, 2**-9]]))

    def forward(self, input_ids, use_cache):
        rows = torch.stack([torch.ones(len(input_ids)), input_ids[:, -1].float()], dim=1)
        return SimpleNamespace(logits=self.score(rows.bfloat16()))


def test_the_product_for_a_score_is_in_float32_and_what_has_no_tokens_has_no_score():
    row = RowToScore({}, ("a", "b", ""), ((5, 0), (5, 1), ()), (1, 1, 0))
    (found,) = score_rows(BFloat16Scorer(), [row], size=2)
    assert found[:2] == [1.0, 1 + 2**-9] and math.isnan(found[2])


@pytest.mark.parametrize("row", [{"prompt": "a?"}, {"prompt": "a?", "answers": []}, [1]])
def test_a_row_that_holds_no_answer_is_named_with_its_line(tmp_path, tokenizer, row):
    with pytest.raises(DataError, match=r"`evaluate\.scores\.file` must hold .*rows\.jsonl:1"):
        read(tmp_path, [row], tokenizer)


@pytest.mark.parametrize(("answers", "shown"), [([], r"\[\]"), ("yes", "'yes'")])
def test_answers_that_are_no_list_or_an_empty_one_are_shown(tmp_path, tokenizer, answers, shown):
    """It said that the row had `answers`, which is what it asks for."""
    with pytest.raises(DataError, match=rf"rows\.jsonl:1 has {shown} where a list of answers belongs"):
        read(tmp_path, [{"prompt": "a?", "answers": answers}], tokenizer)
