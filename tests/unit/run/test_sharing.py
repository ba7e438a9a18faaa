"""Whether answers share their prompt is settled by the model's config.json, before any data is prepared."""

import dataclasses
import json

import pytest

from trainer.config.check import find_problems
from trainer.config.data import DataConfig, Format, PackingMode, SourceConfig
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import freeze, with_share_prompts
from trainer.config.store import compose_config, load_config
from trainer.errors import ConfigError
from trainer.run.packing import with_packing

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
GEMMA3 = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
LFM2 = {
    "model_type": "lfm2",
    "architectures": ["Lfm2ForCausalLM"],
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
}
LLAMA4 = {"model_type": "llama4_text", "architectures": ["Llama4ForCausalLM"], "num_hidden_layers": 4}
MPT = {"model_type": "mpt", "architectures": ["MptForCausalLM"]}


def config_of(folder, record, share=None, **data):
    (folder / "config.json").write_text(json.dumps(record))
    data = {"packing": PackingMode.packed, "cache_dir": str(folder), **data}
    pairs = SourceConfig(path=str(folder / "nowhere.jsonl"), format=Format.preference)
    return RunConfig(
        run_dir=str(folder / "run"),
        model=ModelConfig(kind=ModelKind.pretrained, path=str(folder)),
        data=DataConfig(**{"sources": {"pairs": pairs}, "share_prompts": share, **data}),
    )


CANNOT = [
    (LFM2, "layers of the kind conv carry something from one document to the next"),
    (LLAMA4, "layers of the kind chunked_attention pick what they see"),
    (MPT, "mpt counts places of tokens along a row"),
    (MIXTRAL | {"output_router_logits": True}, "the model's loss of routers is of every token"),
]


@pytest.mark.parametrize("record", [LLAMA, GEMMA3, MIXTRAL])
def test_a_model_whose_attention_sees_all_or_a_window_shares_prompts(tmp_path, capsys, record):
    assert with_packing(config_of(tmp_path, record)).data.share_prompts is True
    assert capsys.readouterr().out.startswith(
        "data.share_prompts=true: a pack holds the prompt of a pair once"
    )
    assert with_packing(config_of(tmp_path, record, True)).data.share_prompts is True
    assert with_packing(config_of(tmp_path, record, False)).data.share_prompts is False
    assert with_packing(config_of(tmp_path, record), says=False).data.share_prompts is True
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("record", "why"), CANNOT)
def test_another_makes_two_documents_of_a_pair_and_is_refused_where_it_must_not(
    tmp_path, capsys, record, why
):
    assert with_packing(config_of(tmp_path, record)).data.share_prompts is False
    said = capsys.readouterr().out
    assert said.startswith(f"data.share_prompts=false: {why}") and said.endswith(
        "so a pair is two documents.\n"
    )
    with pytest.raises(
        ConfigError, match=r"`data.share_prompts` must be null or false here, but is true"
    ) as one:
        with_packing(config_of(tmp_path, record, True))
    assert why in str(one.value) and str(one.value).endswith("Set data.share_prompts=false.")


def test_without_pairs_nothing_is_chosen(tmp_path, capsys):
    answers = {"answers": SourceConfig(path="nowhere.jsonl", format=Format.unpaired)}
    assert with_packing(config_of(tmp_path, LLAMA, sources=answers)).data.share_prompts is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("begun", "wanted"), [(None, False), (False, False), (True, True)])
def test_a_run_goes_on_as_it_began(tmp_path, begun, wanted):
    """One from before there was a choice, whose frozen configuration does not say, has two documents a pair."""
    run_dir = tmp_path / "run"
    (tmp_path / "model").mkdir()
    config = dataclasses.replace(config_of(tmp_path / "model", LLAMA), run_dir=str(run_dir))
    freeze(with_share_prompts(config, begun), run_dir)
    (run_dir / "metrics.jsonl").write_text("")
    settled = with_packing(config, says=False)
    assert settled.data.share_prompts is wanted
    assert load_config(freeze(settled, run_dir)).data.share_prompts is wanted


def problems(*words):
    base = [
        "model=tiny",
        "data=preference",
        "data.sources.pairs.path=x.jsonl",
        "objective=dpo",
        "run_dir=/nowhere",
    ]
    sizes = ["data.seq_len=128", "train.max_steps=4", "train.global_batch_tokens=256"]
    config = compose_config([*base, *sizes, "data.share_prompts=true", *words])
    return {found.key: found.sentence for found in find_problems(config, 1)}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["tune=prefix"], "tune.method=prefix puts virtual tokens before every document"),
        (["data.packing=none"], "data.packing=none gives every document a row of its own"),
        (["train.router_bias_rate=0.001"], "train.router_bias_rate goes by the tokens of experts"),
        (["data.sources.pairs.format=chat", "objective=causal_lm"], "without a source of format=preference"),
    ],
)
def test_what_does_not_go_with_shared_prompts_is_refused(words, why):
    assert "data.share_prompts" not in problems()
    sentence = problems(*words)["data.share_prompts"]
    assert sentence.startswith("`data.share_prompts` must be null or false") and why in sentence


def test_virtual_tokens_make_two_documents_by_themselves(tmp_path, capsys):
    from trainer.config.tune import TuneConfig, TuneMethod

    config = dataclasses.replace(config_of(tmp_path, LLAMA), tune=TuneConfig(method=TuneMethod.prompt))
    assert with_packing(config).data.share_prompts is False
    assert "tune.method=prompt puts virtual tokens before every document" in capsys.readouterr().out
