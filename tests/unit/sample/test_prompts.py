"""Where a sample begins and its turns end, for templates in the shapes that models use; headers by hand."""

import pytest

from tests.helpers import templates
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.generate import Prompts
from trainer.errors import ConfigError
from trainer.sample.prompts import Draft, PromptPlan, plan_prompts, uses_chat


def plan_of(template, **options):
    tokenizer = make_tokenizer(template, **options)
    plan = plan_prompts(True, tokenizer, tokenizer.special_ids, [])
    shown = [tokenizer.decode(ids) for ids in (plan.header, plan.bridge)]
    return (*shown, {tokenizer.decode([stop]) for stop in plan.stops}, plan.opening)


@pytest.mark.parametrize(
    ("template", "header", "bridge", "stops", "opening"),
    [
        (
            "CHATML",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            {"<|im_end|>", "</s>"},
            "",
        ),
        (
            "LLAMA3",
            "<s><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            {"<|eot_id|>", "</s>"},
            "",
        ),
        (
            "QWEN3",
            "<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            {"<|im_end|>", "</s>"},
            "",
        ),
        (
            "GEMMA",
            "<s><start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
            {"<end_of_turn>", "</s>"},
            "",
        ),
        ("MISTRAL", "<s>[INST] ", "[/INST]", {"</s>"}, ""),
        ("R1", "<s><|User|>", "<|Assistant|><think>\n", {"</s>"}, "<think>\n"),
    ],
)
def test_header_and_bridge_are_the_templates_own_words(template, header, bridge, stops, opening):
    assert plan_of(getattr(templates, template)) == (header, bridge, stops, opening)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (templates.PLAIN, "ends the user's turn with no special token"),
        ("{{ messages[0].content }}", "as they are, once"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "as they are, once"),
        ("{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}", "nothing before the user's words"),
        ("{{ raise_exception('no chats today') }}", "refuses a question and an answer: no chats today"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_show_its_turns_is_refused(template, reason):
    with pytest.raises(ConfigError) as refusal:
        plan_of(template)
    assert reason in str(refusal.value) and "Set replay.generate.prompts=text" in str(refusal.value)


def test_a_text_begins_with_bos_or_where_there_is_none_with_the_end_of_another():
    tokenizer = make_tokenizer()
    plan = plan_prompts(False, tokenizer, tokenizer.special_ids, [17])
    assert (plan.header, plan.bridge) == ([tokenizer.bos_id], [])
    assert plan.stops == sorted([17, tokenizer.eos_id])
    tokenizer.hf.bos_token = None
    assert plan_prompts(False, tokenizer, tokenizer.special_ids, []).header == [tokenizer.eos_id]
    tokenizer.hf.eos_token = None
    with pytest.raises(ConfigError, match="neither BOS nor EOS"):
        plan_prompts(False, tokenizer, tokenizer.special_ids, [])


def test_auto_is_chat_where_there_is_a_template_and_chat_without_one_is_refused():
    with_template, without = make_tokenizer(), make_tokenizer(None)
    assert uses_chat(Prompts.auto, with_template) and uses_chat(Prompts.chat, with_template)
    assert not uses_chat(Prompts.text, with_template) and not uses_chat(Prompts.auto, without)
    with pytest.raises(ConfigError, match=r"replay\.generate\.prompts. must be text .* but is chat instead"):
        uses_chat(Prompts.chat, without)


def test_a_base_with_nothing_to_begin_a_sample_with_is_told_once_whatever_is_asked():
    """Else text is told to be chat, and chat to be text."""
    nothing = make_tokenizer(None)
    nothing.hf.bos_token = nothing.hf.eos_token = None
    for asked in Prompts:
        with pytest.raises(ConfigError, match=r"neither BOS, EOS nor a chat template.*nothing tells where"):
            uses_chat(asked, nothing)


PLAN = PromptPlan(is_chat=True, header=[1], bridge=[50, 51, 52], stops=[50, 60])


def grow(draft, sampled):
    return [draft.take(token) for token in sampled]


def test_a_chat_grows_through_the_templates_words_whatever_the_model_says_there():
    draft = Draft(PLAN, max_new_tokens=10)
    assert grow(draft, [7, 8, 50, 99, 98, 9, 10, 60]) == [7, 8, 50, 51, 52, 9, 10, 60]
    assert draft.turns == [[7, 8], [9, 10]] and draft.is_done and draft.has_ended
    assert draft.num_sampled == 6, "the model's words under the bridge were counted"


@pytest.mark.parametrize(
    ("sampled", "turns"),
    [
        ([7, 60], [[7]]),
        ([7, 8, 9], [[7, 8, 9]]),
        ([7, 50, 0, 0, 8, 9, 10], [[7], [8, 9, 10]]),
    ],
    ids=["another end in the question", "a long question", "a long answer"],
)
def test_a_chat_that_does_not_end_with_its_answer_has_not_ended(sampled, turns):
    draft = Draft(PLAN, max_new_tokens=3)
    grow(draft, sampled)
    assert draft.turns == turns and draft.is_done and not draft.has_ended
    assert draft.take(5) == 5 and draft.turns == turns, "a finished sample grew"


def test_a_text_ends_at_a_stop_or_at_the_limit():
    plan = PromptPlan(is_chat=False, header=[1], bridge=[], stops=[60])
    ended, cut = Draft(plan, 3), Draft(plan, 3)
    grow(ended, [4, 60])
    grow(cut, [4, 5, 6])
    assert (ended.turns, ended.is_done, ended.has_ended) == ([[4]], True, True)
    assert (cut.turns, cut.is_done, cut.has_ended) == ([[4, 5, 6]], True, False)
