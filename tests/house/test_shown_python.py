"""Every block of Python in README and docs runs, on a tiny model in the place of the one that it names."""

import re

import pytest

from tests.helpers.shown_commands import shown_python
from tests.helpers.tiny import save_llama
from tests.house.test_shown_commands import PAGES
from tests.house.tree import ROOT

SHOWN = shown_python(ROOT, PAGES)
PAGE, REWARD = "docs/ask.md", "docs/reward-models.md"


@pytest.fixture
def export(tmp_path, monkeypatch):
    """Return the folder that the page names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / re.search(r'folder = "([^"]+)"', SHOWN[PAGE][0])[1]
    folder.mkdir(parents=True)
    return folder


def test_every_block_is_run_here():
    assert {page: len(blocks) for page, blocks in SHOWN.items()} == {PAGE: 1, REWARD: 1}


def test_an_exported_model_is_loaded_and_asked(export, capsys):
    save_llama(export)
    exec(SHOWN[PAGE][0], {})
    assert capsys.readouterr().out.endswith("\n")


def test_an_exported_adapter_is_loaded_as_the_page_says(export, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from trainer.model.tiny import build_tokenizer

    save_llama(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(export)
    build_tokenizer().save_pretrained(export)
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    first, third = re.search(r"`(from peft import \w+)` the third line is `(model = [^`]+)`", page).groups()
    code = re.sub(r"^model = .*$", third, SHOWN[PAGE][0], flags=re.MULTILINE)
    exec(f"{first}\n{code}", {})
    assert capsys.readouterr().out.endswith("\n")


def test_an_exported_reward_model_is_loaded_and_scores(tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / re.search(r'folder = "([^"]+)"', SHOWN[REWARD][0])[1]
    save_llama(folder)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    exec(SHOWN[REWARD][0], {})
    float(capsys.readouterr().out)
