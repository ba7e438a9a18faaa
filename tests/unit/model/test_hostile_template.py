"""A chat template is a stranger's program: it reads nothing, runs nothing, and comes to an end."""

import pytest

from trainer.config.model import ModelConfig
from trainer.errors import DataError, ModelError
from trainer.model import tokenizer as module
from trainer.model.template_syntax import why_no_jinja
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


@pytest.mark.parametrize("clock", ["", "{{ strftime_now('%d') }}"])
def test_a_template_that_does_not_compile_is_told_with_its_file_and_line(tokenizer, tmp_path, clock):
    with pytest.raises(
        ModelError, match=rf"must be valid Jinja, but {tmp_path}/own.jinja, line 2, is not: unexp"
    ):
        tokenizer(clock + "\n{{ messages }").render_chat(TURNS)


def test_where_a_template_fails_on_a_conversation_is_told_but_not_where_it_refuses_one(tokenizer, tmp_path):
    with pytest.raises(DataError, match=rf"^{tmp_path}/own.jinja, line 2: 'list object' has no attribute"):
        tokenizer("\n{{ messages.nope.x }}").render_chat(TURNS)
    with pytest.raises(DataError, match=r"^No turns"):
        tokenizer("{{ raise_exception('No turns.') }}").render_chat(TURNS)


def test_a_template_that_transformers_compiles_is_taken():
    own = "{% for m in messages %}{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}{% break %}{% endfor %}"
    assert why_no_jinja(own, "own.jinja") is None
    assert "No filter named 'nope'" in str(why_no_jinja("{{ 1 | nope }}", "own.jinja"))
