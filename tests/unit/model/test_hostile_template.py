"""A chat template is a stranger's program: it reads nothing, runs nothing, and comes to an end."""

import pytest

from trainer.config.model import ModelConfig
from trainer.errors import DataError, ModelError
from trainer.model import tokenizer as module
from trainer.model.tiny import build_tokenizer
from trainer.model.tokenizer import configured_tokenizer

TURNS = [{"role": "user", "content": "Hello."}]
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.fixture
def tokenizer(tmp_path):
    """Return a function that gives a tokenizer with a template."""
    build_tokenizer().save_pretrained(tmp_path / "model")

    def make(template):
        file = tmp_path / "own.jinja"
        file.write_text(template)
        return configured_tokenizer(ModelConfig(chat_template=str(file)), str(tmp_path / "model"))

    return make


def test_loops_in_loops_are_ended_and_the_file_is_named(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "RENDER_S", 0.2)
    with pytest.raises(
        ModelError, match=rf"`model.chat_template` must render .*{tmp_path}/own.jinja takes longer"
    ):
        tokenizer(LOOPS).render_chat(TURNS)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set x = messages.append({}) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_reaches_nothing_of_python(tokenizer, tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        tokenizer(template).render_chat(TURNS)
    assert not (tmp_path / "canary").exists()
