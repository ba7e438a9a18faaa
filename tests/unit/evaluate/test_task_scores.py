"""Benchmark tasks on a tiny model: the same scores as lm-eval's own class for transformers, and as a plain forward."""

import json
import random

import pytest
import torch

from tests.helpers.benchmark_tasks import NAMES, write_tasks
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.tasks import TasksConfig
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ConfigError, DataError
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.evaluate.tasks.likelihood import log_likelihoods
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head

ALONE = alone(torch.device("cpu"))
VOCAB_SIZE = 280


def make_llama(head=True):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
    if head:
        install_loss_head(model, 64)
    return model


def task_model(llama, max_length=512, batch_tokens=200, end_ids=frozenset()):
    return TaskModel(
        policy=Policy(undivided(CausalLM(llama)), ALONE, False),
        hf_config=llama.config,
        pad_id=0,
        end_ids=end_ids,
        max_length=max_length,
        batch_tokens=batch_tokens,
    )


@pytest.fixture(scope="module")
def llama():
    return make_llama()


def plain_log_prob(llama, context, continuation):
    """Return (log-likelihood, greedy) of one row, without batch, padding or packing."""
    tokens = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        hidden = llama.model(tokens).last_hidden_state
        rows = torch.log_softmax(torch.nn.functional.linear(hidden, llama.lm_head.weight)[0].double(), dim=-1)
    rows = rows[len(context) - 1 : -1]
    targets = torch.tensor(continuation)
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(-1) == targets).all())


def drawn(count, seed=0):
    rng = random.Random(seed)
    tokens = [[rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 30))] for _ in range(2 * count)]
    return list(zip(tokens[::2], tokens[1::2], strict=True))


def test_a_likelihood_is_that_of_a_plain_forward(llama):
    """A difference: labels are shifted by one, padding is seen, or answers go to other questions."""
    requests = drawn(23)
    best = [
        plain_log_prob(llama, context, [token])[1]
        for context, _ in requests[:1]
        for token in range(VOCAB_SIZE)
    ]
    requests.append((requests[0][0], [best.index(True)]))
    found = log_likelihoods(task_model(llama), requests)
    for (nats, is_greedy), (context, continuation) in zip(found, requests, strict=True):
        expected, is_top = plain_log_prob(llama, context, continuation)
        assert nats == pytest.approx(expected, rel=1e-5, abs=1e-5) and is_greedy is is_top
    assert found[-1][1] is True and not all(is_greedy for _, is_greedy in found)


def test_answers_of_one_question_cost_one_forward(llama):
    """The last token of a request is not read, so requests that differ in it alone are one row."""
    model = task_model(llama)
    rows = []
    forward = model.policy.engine.forward

    def counted(ask, **inputs):
        rows.append(inputs["input_ids"].shape)
        return forward(ask, **inputs)

    model.policy.engine.forward = counted
    context = [5, 6, 7, 8]
    requests = [(context, [9]), (context, [10]), (context[:2], [7, 8, 11])]
    found = log_likelihoods(model, requests)
    assert rows == [(1, 4)]
    for (nats, _), request in zip(found, requests, strict=True):
        assert nats == pytest.approx(plain_log_prob(llama, *request)[0], rel=1e-5)


def test_a_long_context_loses_its_left_end(llama):
    context, continuation = list(range(40)), [41, 42]
    ((nats, _),) = log_likelihoods(task_model(llama, max_length=10), [(context, continuation)])
    assert nats == pytest.approx(plain_log_prob(llama, context[-9:], continuation)[0], rel=1e-5)
    with pytest.raises(DataError, match="1 to 10 tokens after it, but one has 1 and 11 tokens instead"):
        log_likelihoods(task_model(llama, max_length=10), [([1], list(range(11)))])


def plain_greedy(llama, ids, num_tokens):
    for _ in range(num_tokens):
        with torch.no_grad():
            hidden = llama.model(torch.tensor([ids])).last_hidden_state
            ids = [*ids, int(torch.nn.functional.linear(hidden[0, -1], llama.lm_head.weight).argmax())]
    return ids[-num_tokens:]


def test_greedy_answers_are_those_of_plain_forwards_without_a_cache(llama):
    """A difference: positions or the mask of left-padded rows are wrong, or the cache is."""
    prompts = [Prompt(context, 6 + len(context) % 3, ()) for context, _ in drawn(9, seed=1)]
    found = continue_greedily(task_model(llama), prompts, lambda ids: "")
    for ids, prompt in zip(found, prompts, strict=True):
        assert ids == plain_greedy(llama, prompt.ids, prompt.max_new_tokens)


WINDOWED = {
    "mistral": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {"attention_chunk_size": 5, "num_hidden_layers": 4, "num_local_experts": 2},
}


def make_windowed(model_type):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "use_cache": False,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**shape, **WINDOWED[model_type]})
    model = AutoModelForCausalLM.from_config(config).eval()
    install_loss_head(model, 64)
    return model


@pytest.mark.parametrize("model_type", WINDOWED)
def test_answers_and_likelihoods_keep_the_windows_of_the_model(model_type):
    """Prompts and answers are longer than the window: the cache drops keys, and packed masks have to forget too."""
    model = make_windowed(model_type)
    pairs = drawn(7, seed=3)
    prompts = [Prompt(context, 9, ()) for context, _ in pairs]
    found = continue_greedily(task_model(model), prompts, lambda ids: "")
    for ids, prompt in zip(found, prompts, strict=True):
        assert ids == plain_greedy(model, prompt.ids, 9)
    for (nats, _), pair in zip(log_likelihoods(task_model(model), pairs), pairs, strict=True):
        assert nats == pytest.approx(plain_log_prob(model, *pair)[0], rel=1e-5, abs=1e-4)


def test_an_answer_ends_at_a_stop_or_at_an_end_token_and_a_long_prompt_is_cut_on_the_left(llama):
    context = list(range(60, 80))
    ids = plain_greedy(llama, context, 8)
    assert len(set(ids)) > 3, "these weights say the same token for ever"
    decode = lambda tokens: "".join(chr(1000 + token) for token in tokens)  # noqa: E731
    stop = decode(ids[2:4])
    first = next(i for i in range(2, 9) if stop in decode(ids[:i]))
    (answer,) = continue_greedily(task_model(llama), [Prompt(context, 8, (stop,))], decode)
    assert answer == ids[:first]
    at = ids.index(ids[4])
    (answer,) = continue_greedily(
        task_model(llama, end_ids=frozenset([ids[4]])), [Prompt(context, 8, ())], decode
    )
    assert answer == ids[:at]
    (answer,) = continue_greedily(task_model(llama, max_length=16), [Prompt(context, 8, ())], decode)
    assert answer == plain_greedy(llama, context[-8:], 8)
    with pytest.raises(ConfigError, match=r"`evaluate.tasks.max_length` must be more than the 8 tokens"):
        continue_greedily(task_model(llama, max_length=8), [Prompt(context, 8, ())], decode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def both_models(tokenizer, max_length=512):
    """Return (our task model, lm-eval's own class) around the same weights."""
    from lm_eval.models.huggingface import HFLM

    plain = make_llama(head=False)
    plain.generation_config.eos_token_id = tokenizer.eos_id
    theirs = HFLM(pretrained=plain, tokenizer=tokenizer.hf, batch_size=3, max_length=max_length)
    return task_model(make_llama(), max_length, end_ids=frozenset([tokenizer.eos_id])), theirs


def both_results(folder, names, adds_bos=False, max_length=512, **options):
    """Return what our class and lm-eval's own class score on the same model."""
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    from lm_eval.evaluator import evaluate

    from trainer.evaluate.tasks.harness import FEWSHOT_SEED, load_tasks, run_tasks
    from trainer.evaluate.tasks.score import scores_of

    tokenizer = make_tokenizer(adds_bos=adds_bos, pad="<pad>")
    loaded = load_tasks(TasksConfig(names=names, include_path=str(folder), **options))
    model, lm = both_models(tokenizer, max_length)
    ours = run_tasks(loaded, model, tokenizer)
    assert run_tasks(loaded, model, tokenizer) == ours, "a second model is asked with other few-shot examples"
    for task in loaded.plain["tasks"].values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    theirs = evaluate(
        lm=lm,
        task_dict=loaded.plain,
        log_samples=False,
        bootstrap_iters=10,
        apply_chat_template=loaded.options.apply_chat_template,
        fewshot_as_multiturn=loaded.options.apply_chat_template,
    )
    return ours, scores_of(theirs)


def check_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.task, a.metric, a.num_documents) == (b.task, b.metric, b.num_documents)
        assert a.higher_is_better == b.higher_is_better
        assert a.value == pytest.approx(b.value, rel=1e-5), a
        assert (a.stderr is None) == (b.stderr is None)
        assert a.stderr is None or a.stderr == pytest.approx(b.stderr, rel=1e-4), a


@pytest.mark.parametrize("options", [{}, {"num_fewshot": 2}, {"apply_chat_template": True, "num_fewshot": 1}])
def test_scores_are_those_of_lm_evals_own_class(folder, options):
    ours, theirs = both_results(folder, NAMES, **options)
    check_equal(ours, theirs)
    metrics = {(score.task, score.metric): score.higher_is_better for score in ours}
    assert metrics[("local_choice", "acc_norm")] is True
    assert metrics[("local_answer", "exact_match,as-is")] is True
    assert metrics[("local_text", "word_perplexity")] is False
    assert all(score.num_documents in (4, 5, 7) and score.value is not None for score in ours)


def test_a_tokenizer_that_adds_bos_and_texts_longer_than_the_context_agree_too(folder):
    """Rolling windows and cut contexts; texts are left out, because lm-eval scores BOS after BOS there."""
    check_equal(*both_results(folder, NAMES[:3], adds_bos=True, max_length=64))
    check_equal(*both_results(folder, ["local_text"], max_length=50))


def test_a_text_is_scored_after_one_bos(folder):
    """lm-eval's own class reads BOS BOS and counts the second as a token of the text."""
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    from trainer.evaluate.tasks.lm import EngineLM

    tokenizer = make_tokenizer(adds_bos=True)
    llama = make_llama()
    lm = EngineLM(task_model(llama), tokenizer)
    asked = type("Request", (), {"args": ("moss oak",)})()
    (nats,) = lm.loglikelihood_rolling([asked])
    ids = tokenizer.encode_fragments(["moss oak"])[0]
    assert nats == pytest.approx(plain_log_prob(llama, [tokenizer.bos_id], ids)[0], rel=1e-5)
    assert (
        lm.tok_encode("<s>moss")
        == lm.tok_encode("moss")
        == [tokenizer.bos_id, *tokenizer.encode_fragments(["moss"])[0]]
    )


def test_answers_word_for_word_are_those_of_lm_evals_own_class_and_are_graded(folder, tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    from trainer.evaluate.tasks.lm import EngineLM

    tokenizer = make_tokenizer(pad="<pad>")
    model, theirs = both_models(tokenizer)
    requests = [
        type("Request", (), {"args": (text, {"until": stops, "max_gen_toks": 9})})()
        for stops in ([], ["B"], ["\x0c", "}u", "<pad>", "never"])
        for text in ("tin hat", "moss\noak \u00e9", "a", "corn pear ivy oak")
    ]
    ours = EngineLM(model, tokenizer).generate_until(requests)
    assert ours == theirs.generate_until(requests) and len(set(ours)) > 4
    assert not any("B" in text for text in ours[4:8]) and any("B" in text for text in ours[:4])

    from trainer.evaluate.tasks.harness import load_tasks, run_tasks

    questions = [json.loads(line)["question"] for line in (folder / "mine/data/answer.jsonl").open()]
    asked = [
        type("Request", (), {"args": (q, {"until": ["\n", "zz"], "max_gen_toks": 12})})() for q in questions
    ]
    right = EngineLM(model, tokenizer).generate_until(asked)
    write_tasks(tmp_path, [*right[:3], "no", "no"])
    loaded = load_tasks(TasksConfig(names=["local_answer"], include_path=str(tmp_path)))
    scores = {score.metric: score for score in run_tasks(loaded, model, tokenizer)}
    assert scores["exact_match,as-is"].value == pytest.approx(0.6)


def test_a_group_is_scored_with_its_tasks(folder):
    ours, theirs = both_results(folder, ["local_group"])
    check_equal(ours, theirs)
    by_task = {score.task: score.value for score in ours if score.metric == "acc"}
    assert by_task["local_group"] == pytest.approx((by_task["local_choice"] + by_task["local_letters"]) / 2)
