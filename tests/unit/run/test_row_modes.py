"""Whether documents share rows is settled by the model's config.json, before any data is prepared."""

import json

import pytest

from trainer.config.data import DataConfig, Packing, PackingMode, SourceConfig
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError
from trainer.run.packing import with_packing


def config_of(folder, record, asked=PackingMode.auto, of_source=None):
    (folder / "config.json").write_text(json.dumps(record))
    sources = {"text": SourceConfig(path="nowhere.jsonl", packing=of_source)}
    return RunConfig(
        run_dir=str(folder / "run"),
        model=ModelConfig(kind=ModelKind.pretrained, path=str(folder)),
        data=DataConfig(sources=sources, packing=asked, cache_dir=str(folder)),
    )


BLOOM = {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}
FALCON = {"model_type": "falcon", "architectures": ["FalconForCausalLM"]}
LFM2 = {
    "model_type": "lfm2",
    "architectures": ["Lfm2ForCausalLM"],
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
}


@pytest.mark.parametrize(
    ("record", "mode", "why"),
    [
        (
            BLOOM,
            "none",
            "data.packing=none: bloom counts places of tokens by a mask of padding (ALiBi) and takes none",
        ),
        (FALCON | {"alibi": True}, "none", "data.packing=none: falcon counts places"),
        (FALCON | {"alibi": False}, "packed", ""),
        ({"model_type": "mpt", "architectures": ["MptForCausalLM"]}, "packed", ""),
        (
            LFM2,
            "none",
            "data.packing=none: layers of the kind conv carry something from one document to the next, so",
        ),
    ],
)
def test_a_model_that_takes_no_mask_of_pairs_gets_a_row_for_every_document(
    tmp_path, capsys, record, mode, why
):
    assert with_packing(config_of(tmp_path, record)).data.packing.value == mode
    said = capsys.readouterr().out
    assert said.startswith(why) if why else not said


@pytest.mark.parametrize(
    ("asked", "of_source", "fix"),
    [
        (PackingMode.packed, None, "Set data.packing=none."),
        (PackingMode.auto, Packing.best_fit, "Set data.packing=none, and data.sources.text.packing=null."),
    ],
)
def test_packing_that_a_model_cannot_do_is_refused_before_data_is_read(tmp_path, asked, of_source, fix):
    with pytest.raises(ConfigError, match=r"`data\.packing` must be none for this model") as refusal:
        with_packing(config_of(tmp_path, BLOOM, asked, of_source))
    assert str(refusal.value).endswith(fix)
    assert with_packing(config_of(tmp_path, LFM2, asked, of_source)).data.packing is PackingMode.packed
