"""The GGUF file of an export: what is asked for first, and what the converter is told."""

import pytest
from rich.console import Console

from trainer.config.train import ExportConfig, GgufType
from trainer.errors import ConfigError, ModelError
from trainer.export.gguf import find_converter, write_gguf

CONVERTER = """\
import sys
words = sys.argv[1:]
out = words[words.index("--outfile") + 1]
open(out, "w").write(" ".join(words))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    folder = tmp_path / "llama.cpp"
    (folder / "gguf-py").mkdir(parents=True)
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / name).write_text(CONVERTER)
    return folder


def asked(checkout):
    return ExportConfig(gguf=GgufType.f16, llama_cpp=None if checkout is None else str(checkout))


def test_no_converter_is_looked_for_unless_asked(checkout):
    assert find_converter(ExportConfig(llama_cpp="nowhere"), is_adapter=False) is None


def test_a_missing_checkout_is_a_sentence_with_the_command(checkout):
    with pytest.raises(ConfigError, match=r"export.llama_cpp is not set. Run: git clone .*llama.cpp"):
        find_converter(asked(None), is_adapter=False)
    with pytest.raises(ConfigError, match=r"must be a checkout of llama.cpp, but .*conf has no convert_hf"):
        find_converter(asked(checkout.parent / "conf"), is_adapter=False)


def test_the_environment_names_the_checkout_too(checkout, monkeypatch):
    monkeypatch.setenv("LLAMA_CPP", str(checkout))
    assert find_converter(asked(None), is_adapter=True) == checkout / "convert_lora_to_gguf.py"


@pytest.mark.parametrize(("base", "name"), [(None, "model-f16.gguf"), ("/models/base", "adapter-f16.gguf")])
def test_the_file_is_there_whole_under_its_name(checkout, tmp_path, base, name):
    folder = tmp_path / "export"
    folder.mkdir()
    script = find_converter(asked(checkout), is_adapter=base is not None)
    write_gguf(script, folder, GgufType.f16, base, Console(quiet=True))
    assert [path.name for path in folder.iterdir()] == [name]
    words = (folder / name).read_text().split()
    assert words[0] == str(folder) and words[words.index("--outtype") + 1] == "f16"
    assert ("--base" in words) == (base is not None)


def test_a_converter_that_fails_leaves_nothing_and_says_its_last_line(checkout, tmp_path):
    (checkout / "convert_hf_to_gguf.py").write_text(
        CONVERTER + "sys.exit('Model FooForCausalLM is not supported')"
    )
    with pytest.raises(ModelError, match="says: Model FooForCausalLM is not supported The safetensors"):
        write_gguf(find_converter(asked(checkout), False), tmp_path, GgufType.f16, None, Console(quiet=True))
    assert not list(tmp_path.glob("*gguf")) and not list(tmp_path.glob("*tmp"))
