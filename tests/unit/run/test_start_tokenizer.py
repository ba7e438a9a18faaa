"""An adapter that was trained with other token ids is refused; other special tokens and templates are said."""

from __future__ import annotations

import logging

import pytest

from tests.helpers import templates
from tests.helpers.tokenizers import make_tokenizer, save_tokenizer
from trainer.config.model import ModelConfig
from trainer.config.store import compose_config, to_yaml
from trainer.errors import ModelError
from trainer.run.start_tokenizer import check_start_tokenizer


@pytest.fixture
def base(tmp_path):
    return save_tokenizer(tmp_path / "base", make_tokenizer(adds_bos=True))


def told(caplog, model, place, base):
    with caplog.at_level(logging.WARNING):
        check_start_tokenizer(model, place, base)
    ours = [record for record in caplog.records if record.name.startswith("trainer.")]
    return [record.getMessage() for record in ours]


def test_the_same_tokenizer_and_a_folder_without_one_are_not_spoken_of(tmp_path, base, caplog):
    place = tmp_path / "adapter"
    save_tokenizer(place, make_tokenizer(adds_bos=True))
    assert told(caplog, ModelConfig(), place, base) == []
    (tmp_path / "bare").mkdir()
    assert told(caplog, ModelConfig(), tmp_path / "bare", base) == []


def test_other_ids_are_refused_with_the_first_token_that_differs(tmp_path, base):
    place = tmp_path / "adapter"
    save_tokenizer(
        place, make_tokenizer(adds_bos=True, pad="<pad>")
    )  # which comes before the tokens of chats
    with pytest.raises(ModelError) as error:
        check_start_tokenizer(ModelConfig(), place, base)
    assert str(error.value).startswith("`tune.start` must be an adapter of this run's tokenizer, but ")
    assert "was trained with '<pad>' as id 258, and this run's does not have it (" in str(error.value)
    assert str(error.value).endswith("instead. Set model.tokenizer to the one that it was trained with.")


def test_another_template_and_bos_are_said_with_the_words_that_bring_them_back(tmp_path, base, caplog):
    place = tmp_path / "adapter"
    save_tokenizer(place, make_tokenizer(templates.LLAMA3))
    (line,) = told(caplog, ModelConfig(), place, base)
    assert "documents do not begin with BOS, here they do; the chat template is another." in line
    assert line.endswith(f"model.tokenizer={place} goes on as it was.")


def test_the_template_of_a_run_is_the_one_that_its_configuration_names(tmp_path, base, caplog):
    run, template = tmp_path / "run", tmp_path / "other.jinja"
    template.write_text(templates.LLAMA3)
    run.mkdir()
    config = compose_config(["model=tiny", f"model.chat_template={template}"])
    (run / "config.yaml").write_text(to_yaml(config))
    here = compose_config(["model=tiny"]).model
    (line,) = told(caplog, here, run, base)
    assert (
        "the chat template is another" in line
        and f"model.chat_template={template} goes on as it was." in line
    )
    template.unlink()
    (line,) = told(caplog, here, run, base)[1:]
    assert "cannot be compared" in line and str(template) in line
