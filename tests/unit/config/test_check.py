"""Every cross-field rule: one sentence that names the key, the rule, the value and the fix."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tiny import tiny_config
from trainer.config.check import check_config, find_problems
from trainer.config.check_values import value_problems
from trainer.config.data import Format, LongDocuments, Packing, PackingMode, SourceConfig, TokenValue
from trainer.config.gate import GateRule, TaskRule
from trainer.config.learn import LearnConfig, Reasoning
from trainer.config.model import Attention, ModelKind
from trainer.config.objective import ObjectiveKind
from trainer.config.optim import Offload, ScheduleName
from trainer.config.preference import PreferenceLoss
from trainer.config.schema import RunConfig
from trainer.config.spikes import SpikePolicy
from trainer.config.store import compose_config
from trainer.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def edited(config, edits):
    result = copy.deepcopy(config)
    for key, value in edits.items():
        *sections, name = key.split(".")
        target = result
        for section in sections:
            target = target[section] if isinstance(target, dict) else getattr(target, section)
        setattr(target, name, value)
    return result


RULES = [
    ("name", {"name": ""}),
    *(("name", {"name": name}) for name in ("a/b", "/", ".", "..", "../a")),
    ("run_dir", {"run_dir": ""}),
    ("model", {"model.path": ""}),
    ("model.path", {"model.path": "", "model.kind": ModelKind.random}),
    ("model.checkpoint_layers", {"model.checkpoint_layers": -2}),
    ("model.loss_chunk_tokens", {"model.loss_chunk_tokens": 0}),
    ("data.sources", {"data.sources": {}}),
    ("data.seq_len", {"data.seq_len": 4}),
    ("data.validation_frac", {"data.validation_frac": 0.6}),
    ("data.validation_frac", {"data.validation_frac": float("nan")}),
    ("data.max_validation_packs", {"data.max_validation_packs": 0}),
    ("data.num_workers", {"data.num_workers": -1}),
    ("data.values", {"data.values": [TokenValue.weight]}),
    ("data.sources.text.columns.weight", {"data.sources.text.columns.weight": "w"}),
    ("data.sources.chat.path", {"data.sources.chat.path": None}),
    ("data.sources.chat", {"data.sources.chat.dataset": "a/b"}),
    ("data.sources.text.as_chat", {"data.sources.text.as_chat": True}),
    ("data.sources.text.packing", {"data.sources.text.format": Format.chat,
                                   "data.sources.text.packing": Packing.concat}),
    ("data.sources.text.txt_documents", {"data.sources.text.txt_documents": "page"}),
    ("data.sources.text.clean.max_chars", {"data.sources.text.clean.min_chars": 5,
                                           "data.sources.text.clean.max_chars": 4}),
    ("data.sources.text.learn", {"data.sources.text.learn": LearnConfig(end_mark=False)}),
    ("data.sources.text.learn.roles", {"data.sources.text.format": Format.chat, "data.sources.text.learn.roles": []}),
    ("data.sources.text.learn.roles", {"data.sources.text.format": Format.chat,
                                       "data.sources.text.learn.roles": ["tools"]}),
    ("train", {"train.max_steps": None}),
    ("train", {"train.max_epochs": 1.0}),
    ("train.max_steps", {"train.max_steps": 0}),
    ("train.max_tokens", {"train.max_steps": None, "train.max_tokens": -5}),
    ("train.micro_batch_size", {"train.micro_batch_size": 0}),
    ("train.global_batch_tokens", {"train.global_batch_tokens": 100}),
    ("train.max_non_finite_steps", {"train.max_non_finite_steps": -1}),
    ("train.verify_every", {"train.verify_every": -1, "deterministic": True}),
    ("train.verify_every", {"train.verify_every": 10}),
    ("train.spikes.least", {"train.spikes.least": 3}),
    ("train.spikes.window", {"train.spikes.window": 31}),
    ("train.spikes.max_in_a_row", {"train.spikes.max_in_a_row": 0}),
    ("train.spikes.rewind_steps", {"train.spikes.rewind_steps": -1}),
    ("train.spikes.rewind_skips", {"train.spikes.rewind_skips": 0}),
    ("train.spikes.max_rewinds", {"train.spikes.max_rewinds": 0}),
    ("train.spikes.deviations", {"train.spikes.deviations": 0.0}),
    ("train.spikes.policy", {"train.spikes.policy": SpikePolicy.rewind, "checkpoint.every_steps": 0}),
    ("train.spikes.policy", {"train.spikes.policy": SpikePolicy.rewind, "checkpoint.enabled": False}),
    ("cluster.watch.beat_s", {"cluster.watch.beat_s": 0.0}),
    ("cluster.watch.step_s", {"cluster.watch.step_s": 5.0}),
    ("cluster.watch.save_s", {"cluster.watch.save_s": 0.0}),
    ("cluster.watch.step_factor", {"cluster.watch.step_factor": 0.5}),
    ("cluster.watch.straggler_ratio", {"cluster.watch.straggler_ratio": 1.0}),
    ("cluster.watch.straggler_steps", {"cluster.watch.straggler_steps": 0}),
    ("cluster.num_nodes", {"cluster.num_nodes": 0}),
    ("optim.lr", {"optim.lr": 0.0}),
    ("data.sources.text.packing", {"data.packing": PackingMode.none, "data.sources.text.packing": Packing.concat,
                                   "data.sources.chat.packing": None}),
    ("optim.betas", {"optim.betas": [0.9]}),
    ("optim.betas", {"optim.betas": [0.9, 1.0]}),
    ("optim.eps", {"optim.eps": 0.0}),
    ("optim.weight_decay", {"optim.weight_decay": -0.1}),
    ("optim.clip_norm", {"optim.clip_norm": -1.0}),
    ("optim.base_decay", {"optim.base_decay": -0.1}),
    ("optim.base_decay", {"optim.base_decay": 500.0, "optim.lr": 2e-3}),
    (
        "zero.extra.zero_optimization.offload_optimizer.ratio",
        {"optim.base_decay": 1.0, "zero.extra": {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}},
    ),
    ("schedule.warmup_frac", {"schedule.warmup_frac": 1.5}),
    ("schedule.final_frac", {"schedule.final_frac": -0.1}),
    ("schedule.warmup_steps", {"schedule.warmup_steps": -1}),
    ("schedule", {"schedule.name": ScheduleName.wsd, "schedule.warmup_frac": 0.6, "schedule.decay_frac": 0.6}),
    ("schedule", {"schedule.name": ScheduleName.infinite, "schedule.decay_frac": 0.5}),
    ("zero.stage", {"zero.stage": 4}),
    ("zero.dtype", {"zero.dtype": "fp16"}),
    ("model.attention", {"zero.dtype": "fp32", "model.attention": Attention.flash_attention_2}),
    ("zero.offload_param", {"zero.offload_param": Offload.cpu}),
    ("zero.offload_optimizer", {"zero.stage": 0, "zero.offload_optimizer": Offload.cpu}),
    ("zero.extra.optimizer", {"zero.extra": {"optimizer": {"type": "Adam"}}}),
    ("checkpoint.keep_last", {"checkpoint.keep_last": 0}),
    ("checkpoint.every_steps", {"checkpoint.every_steps": -1}),
    ("checkpoint.node_mtbf_days", {"checkpoint.node_mtbf_days": 0.0}),
    ("evaluate.every_steps", {"evaluate.every_steps": -1}),
    ("evaluate.every_steps", {"evaluate.patience": 2}),
    ("evaluate.forgetting", {"evaluate.forgetting": False, "evaluate.tasks.names": ["arc_easy"]}),
    ("evaluate.tasks.names", {"evaluate.tasks.names": ["a", "b", "a"]}),
    ("evaluate.tasks.num_fewshot", {"evaluate.tasks.num_fewshot": -1}),
    ("evaluate.tasks.limit", {"evaluate.tasks.limit": 0}),
    ("evaluate.tasks.batch_tokens", {"evaluate.tasks.batch_tokens": 0}),
    ("evaluate.tasks.max_length", {"evaluate.tasks.max_length": 1}),
    ("gate.sets.web", {"gate.sets": {"web": GateRule(max_rise_nats=0.1)}}),
    ("gate.sets.text", {"gate.sets": {"text": GateRule()}}),
    ("gate.sets.text", {"gate.sets": {"text": GateRule(max_rise_nats=0.1)}, "data.validation_frac": 0.0}),
    ("data.sources.fixed_conversations", {"data.sources": {"fixed_conversations": SourceConfig(path="a.jsonl")}}),
    ("evaluate.forgetting", {"gate.sets": {"text": GateRule(max_rise_nats=0.1)}, "evaluate.forgetting": False}),
    ("gate.sets.text.max_rise_nats", {"gate.sets": {"text": GateRule(max_rise_nats=-0.1)}}),
    ("gate.tasks.arc", {"gate.tasks": {"arc": TaskRule()}}),
    ("gate.tasks.arc.max_drop", {"gate.tasks": {"arc": TaskRule(max_drop=float("nan"))}}),
    ("gate.tasks.arc.min_drop", {"gate.tasks": {"arc": TaskRule(max_rise=1.0, min_drop=-1.0)}}),
    ("log.every_steps", {"log.every_steps": 0}),
    ("export.dtype", {"export.dtype": "float16"}),
    ("data.sources.text.columns.tools", {"data.sources.text.columns.tools": "tools"}),
    ("data.sources.text.columns.tools", {"data.sources.text.format": Format.completion,
                                         "data.sources.text.columns.tools": "tools"}),
    ("data.sources.text.columns.labels", {"data.sources.text.format": Format.chat,
                                          "data.sources.text.columns.labels": "labels"}),
    ("data.sources.text.columns.completion", {"data.sources.text.format": Format.chat,
                                              "data.sources.text.columns.completion": "-1"}),
    ("data.sources.text.columns.text", {"data.sources.text.format": Format.ids,
                                        "data.sources.text.columns.text": "body"}),
    ("data.sources.text.columns.messages", {"data.sources.text.columns.messages": "turns"}),
    ("data.sources.text.columns.completion", {"data.sources.text.format": Format.completion,
                                              "data.sources.text.columns.completion": "prompt"}),
    ("data.sources.text.columns.ignore", {"data.sources.text.format": Format.chat,
                                          "data.sources.text.columns.ignore": ["id", "messages"]}),
    ("data.sources.text.max_documents", {"data.sources.text.max_documents": 0}),
    ("data.sources.text.path", {"data.sources.text.path": ""}),
    ("data.sources.text.revision", {"data.sources.text.revision": "main"}),
    ("data.sources.text.tokenizer", {"data.sources.text.format": Format.text,
                                    "data.sources.text.tokenizer": "gpt2"}),
    ("data.sources.text.path", {"data.sources.text.path": "zip://a.jsonl::s3://bucket/a.zip"}),
    ("data.sources.text.path", {"data.sources.text.path": "file://a.jsonl"}),
    ("data.sources.text.path", {"data.sources.text.path": "s3://key:secret@bucket/a.jsonl"}),
    ("data.sources.text.path", {"data.sources.text.path": "https://host/a.jsonl?x=1&X-Amz-Signature=ab"}),
]  # fmt: skip


def test_a_good_configuration_has_no_problem(config):
    assert list(find_problems(config)) == []
    check_config(config, world_size=2)


@pytest.mark.parametrize(("key", "edits"), RULES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_rule_is_one_sentence_with_key_rule_value_and_fix(config, key, edits):
    (problem,) = find_problems(edited(config, edits))
    assert problem.key == key and problem.sentence.startswith(f"`{key}` must "), problem
    assert ", but " in problem.sentence and " instead. " in problem.sentence, problem
    assert problem.sentence.endswith("."), problem


@pytest.mark.parametrize("key", ["optim.lr", "optim.eps", "optim.weight_decay", "optim.clip_norm"])
def test_a_rate_that_is_not_a_number_is_refused(config, key):
    assert list(find_problems(edited(config, {key: float("nan")})))


def test_the_problems_of_the_defaults_are_those_a_person_has_to_decide():
    assert [problem.key for problem in find_problems(RunConfig())] == ["model", "data.sources", "train"]


def test_all_problems_are_raised_together_with_their_number(config):
    broken = edited(
        config, {key: value for _, edits in RULES[:1] + RULES[27:29] for key, value in edits.items()}
    )
    with pytest.raises(ConfigError) as caught:
        check_config(broken)
    assert str(caught.value).startswith("The configuration has 3 problems:\n  - ")
    assert str(caught.value).count("\n  - ") == 3
    broken = edited(config, {"optim.lr": 0.0})
    with pytest.raises(ConfigError, match=r"has 1 problem:\n"):
        check_config(broken)


def test_a_command_is_told_of_the_sections_and_keys_that_it_reads(config):
    broken = edited(config, {"optim.lr": 0.0, "train.max_steps": 0, "train.micro_batch_size": 0})
    assert [problem.key for problem in find_problems(broken)] == [
        "train.max_steps",
        "train.micro_batch_size",
        "optim.lr",
    ]
    for only, keys in (
        (("optim",), ["optim.lr"]),
        (("train.max_steps", "optim.lr"), ["train.max_steps", "optim.lr"]),
        (("train",), ["train.max_steps", "train.micro_batch_size"]),
    ):
        with pytest.raises(ConfigError) as caught:
            check_config(broken, only=only)
        assert [line.split("`")[1] for line in str(caught.value).splitlines()[1:]] == keys
    check_config(broken, only=("opti", "train.max", "optim.lr.x", "model"))


@given(st.integers(1, 10**9), st.integers(1, 8), st.integers(1, 4096), st.integers(8, 32768))
def test_the_batch_that_the_sentence_proposes_is_accepted(tokens, micro, ranks, seq_len):
    config = tiny_config_at_nowhere()
    config.train.global_batch_tokens, config.train.micro_batch_size = tokens, micro
    config.data.seq_len = seq_len
    problems = list(find_problems(config, ranks))
    if not problems:
        assert tokens % (micro * ranks * seq_len) == 0
        return
    (problem,) = problems
    config.train.global_batch_tokens = int(problem.sentence.rsplit("=", 1)[1].partition(".")[0])
    assert list(find_problems(config, ranks)) == []
    unit = micro * ranks * seq_len
    assert (
        abs(config.train.global_batch_tokens - tokens) <= unit / 2 or config.train.global_batch_tokens == unit
    )


def tiny_config_at_nowhere():
    from pathlib import Path

    return tiny_config(Path("nowhere"))


def test_ranks_of_the_cluster_section_count_before_they_are_known(config):
    many = edited(config, {"cluster.num_nodes": 2, "cluster.ranks_per_node": 4})
    (problem,) = find_problems(many)
    assert "= 8 x 1 x 64 = 512, but is 256 instead. Set train.global_batch_tokens=512." in problem.sentence
    assert list(find_problems(many, world_size=4)) == []


def test_the_numbers_of_tokens_are_those_that_the_objective_reads(config):
    data, weight = config.data, TokenValue.weight
    assert not list(value_problems(data, ()))
    (missing,) = value_problems(data, [weight])
    assert missing.sentence == (
        "`data.values` must be [weight], the numbers of tokens that the objective reads, but is [] instead. "
        "Set data.values=[weight]."
    )
    data.values = [weight]
    assert not list(value_problems(data, [weight]))
    (unread,) = value_problems(data, ())
    assert unread.sentence.startswith("`data.values` must be [], ") and unread.sentence.endswith("=[].")
    data.values = [weight, weight]
    assert len(list(value_problems(data, [weight]))) == 1


PREFERRED = {"data.sources.text.format": Format.preference, "data.sources.text.as_chat": True}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packing", Packing.concat),
        ("long_documents", LongDocuments.split),
        ("learn", LearnConfig(reasoning=Reasoning.answer_only)),
    ],
)
def test_a_pair_is_whole_and_weighed_from_its_beginning(config, key, value):
    told = {problem.key for problem in find_problems(edited(config, PREFERRED))}
    more = find_problems(edited(config, PREFERRED | {f"data.sources.text.{key}": value}))
    (found,) = [problem for problem in more if problem.key not in told]
    assert found.sentence.startswith(f"`data.sources.text.{key}")


@pytest.mark.parametrize("format_", [Format.preference, Format.unpaired])
def test_an_objective_of_documents_refuses_preferences(config, format_):
    """Of a pair it would learn the rejected answer as well."""
    (found,) = find_problems(edited(config, {"data.sources.text.format": format_}))
    assert found.sentence.startswith(
        "`data.sources.text.format` must be text, completion, chat or ids for objective=causal_lm, "
        f"but is '{format_.value}' instead."
    )


def of_pairs(config, **edits):
    wanted = {
        "objective.kind": ObjectiveKind.preference,
        "objective.preference.loss": PreferenceLoss.orpo,
        "data.values": [TokenValue.label],
        "data.sources.text.format": Format.preference,
    }
    return list(
        find_problems(
            edited(config, wanted | {key.replace("__", "."): value for key, value in edits.items()})
        )
    )


def test_an_objective_of_pairs_is_fed_by_pairs_and_documents(config):
    assert of_pairs(config) == []
    (found,) = of_pairs(config, data__sources__text__format=Format.unpaired)
    assert found.sentence.startswith(
        "`data.sources.text.format` must be text, completion, chat, ids or preference for objective=orpo, but is "
        "'unpaired' instead. To learn from answers with labels set objective=kto (apo_zero_unpaired or kto); "
    )
    (found,) = of_pairs(config, data__sources__text__format=Format.text)
    assert (
        "must be preference in some source with role=target for objective=orpo, but is 'ids' instead. Set "
        "data=preference where rows hold prompt, chosen and rejected, or objective=causal_lm."
        in found.sentence
    )


def test_a_loss_of_answers_with_labels_is_fed_by_those(config):
    kto = {"objective__preference__loss": PreferenceLoss.kto}
    assert of_pairs(config, **kto, data__sources__text__format=Format.unpaired) == []
    (found,) = of_pairs(config, **kto)
    assert found.sentence.startswith(
        "`data.sources.text.format` must be text, completion, chat, ids or unpaired for objective=kto, but is "
        "'preference' instead."
    )


def test_a_larger_step_is_not_proposed_without_what_it_does_to_little_data():
    words = ["model=tiny", "train.global_batch_tokens=4096", "data.seq_len=512", "cluster.num_nodes=2"]
    (one,) = (
        rule.sentence
        for rule in find_problems(compose_config([*words, "cluster.ranks_per_node=8"]))
        if rule.key == "train.global_batch_tokens"
    )
    assert (
        "Set train.global_batch_tokens=8192. A step grows by that: where the data is small take fewer ranks"
        in one
    )
