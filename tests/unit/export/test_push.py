"""Pushing to a stand-in of the hub: what was verified and nothing else, again after an interruption, or a sentence."""

import hashlib

import pytest
from huggingface_hub import constants

from tests.helpers.hub_server import HubRepository, blob_of, connected_hub
from trainer.config.train import ExportConfig
from trainer.errors import ConfigError, SelfCheckError, TrainerError
from trainer.export.push import file_digest, open_repository, push

NAME = "my-org/my-model"


@pytest.fixture
def hub(monkeypatch):
    """Return an empty hub that the client of this process talks to, with a token that may write."""
    with connected_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "export"
    path.mkdir()
    for name, content in (("model-00001-of-00002", b"1" * 999), ("model-00002-of-00002", b"2" * 999)):
        (path / f"{name}.safetensors").write_bytes(content)
    (path / "config.json").write_text('{"model_type": "llama"}\n')
    (path / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# A model\n")
    return path


def digests_of(folder):
    return {path.name: file_digest(path) for path in folder.iterdir()}


def opened(**changes):
    return open_repository(ExportConfig(hub=NAME, **changes))


def test_the_pushed_files_are_those_of_the_list_and_equal_the_folders(hub, folder):
    digests = digests_of(folder)
    (folder / "notes.txt").write_text("not verified")
    done = push(opened(), folder, digests, "a push")
    held = hub.files(NAME)
    assert held.keys() == {*digests, ".gitattributes"}
    for name, digest in digests.items():
        content = hub.lfs[held[name]] if isinstance(held[name], str) else held[name]
        assert hashlib.sha256(content).hexdigest() == digest, name
    assert isinstance(held["model-00001-of-00002.safetensors"], str)
    assert hub.repositories[NAME].is_private and hub.repositories[NAME].commits == ["Palimpsest: a push"]
    assert (done.num_files, done.removed, done.others) == (4, (), ())


def test_a_branch_is_made_and_main_is_left(hub, folder):
    push(opened(hub_revision="trial/1"), folder, digests_of(folder), "a push")
    assert "config.json" in hub.files(NAME, "trial/1") and "config.json" not in hub.files(NAME)


def test_a_push_that_was_interrupted_goes_on_where_it_was(hub, folder):
    """A failure of the last line: what the hub had already was sent again."""
    hub.uploads_left = 1
    with pytest.raises(TrainerError, match=r"answers 507.*what was sent is not sent again"):
        push(opened(), folder, digests_of(folder), "a push")
    assert len(hub.uploads) == 1 and not hub.repositories[NAME].commits
    hub.uploads_left = None
    push(opened(), folder, digests_of(folder), "a push")
    assert hub.files(NAME).keys() > digests_of(folder).keys()
    assert len(hub.uploads) == len(set(hub.uploads)) == 2


def test_pushing_the_same_again_sends_nothing(hub, folder):
    for _ in range(2):
        push(opened(), folder, digests_of(folder), "a push")
    assert len(hub.uploads) == 2 and len(hub.repositories[NAME].commits) == 1


def test_weights_of_an_earlier_push_go_and_other_files_stay(hub, folder):
    push(opened(), folder, digests_of(folder), "two shards")
    hub.files(NAME)["eval.md"] = b"a person wrote this"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"3" * 99)
    done = push(opened(), folder, digests_of(folder), "one shard")
    assert done.removed == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert done.others == ("eval.md",)
    assert hub.files(NAME).keys() == {*digests_of(folder), "eval.md", ".gitattributes"}


def test_a_file_that_changed_after_it_was_verified_is_not_pushed(hub, folder):
    digests = digests_of(folder)
    (folder / "config.json").write_text("{}\n")
    with pytest.raises(
        SelfCheckError, match=r"must be pushed as it was verified, but config.json has changed"
    ):
        push(opened(), folder, digests, "a push")
    assert not hub.uploads


def test_a_file_that_arrived_otherwise_is_named(hub, folder):
    hub.spoil = b"x"
    with pytest.raises(SelfCheckError, match=r"(config.json|README.md) on the hub must be the one in"):
        push(opened(), folder, digests_of(folder), "a push")


def test_a_public_repository_is_not_pushed_to_unless_said(hub):
    hub.repositories[NAME] = HubRepository(is_private=False)
    with pytest.raises(
        ConfigError, match=r"`export.hub_private` must be false .* my-org/my-model is such a one"
    ):
        opened()
    assert opened(hub_private=False).name == NAME


def test_weights_that_no_export_pushed_are_not_replaced(hub, folder):
    """A base model in a repository of one's own was removed for the export."""
    hub.repositories[NAME] = HubRepository(is_private=True)
    hub.files(NAME)["model.safetensors"] = b"a person pushed this"
    with pytest.raises(ConfigError, match=r"my-model holds weights that none pushed \(model\.safetensors\)"):
        opened()
    push(opened(hub_revision="tuned"), folder, digests_of(folder), "a push")
    assert hub.files(NAME)["model.safetensors"] == b"a person pushed this"


def test_a_repository_that_was_not_asked_for_asks_nothing_of_the_hub():
    assert open_repository(ExportConfig()) is None


def test_no_token_is_a_sentence(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ConfigError, match=r"must have a token of the hub, but there is none here. Run `hf auth login`"
    ):
        opened()


def test_a_token_that_the_hub_refuses_is_a_sentence(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ConfigError, match=r"refuses this one \(401\). Run `hf auth login`"):
        opened()
    assert not hub.repositories


@pytest.mark.parametrize("is_there", [False, True])
def test_a_place_that_the_token_may_not_write_to_is_a_sentence(hub, is_there):
    """With `is_there` somebody else's repository, which the token may read."""
    if is_there:
        hub.repositories["others/model"] = HubRepository(is_private=False)
    with pytest.raises(ConfigError, match=r"it may not write to others/model \(403\). Name one of yours"):
        open_repository(ExportConfig(hub="others/model", hub_private=False))


def test_a_branch_that_is_not_there_is_a_sentence(hub, folder):
    """404: the branch was removed between the check and the push."""
    repository = opened(hub_revision="trial")
    del hub.repositories[NAME]
    with pytest.raises(
        ConfigError, match=r"does not find my-org/my-model, or hides it from this token \(404\)"
    ):
        push(repository, folder, digests_of(folder), "a push")


def test_no_network_is_a_sentence(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        TrainerError, match=r"cannot be reached or stopped answering: .* then give the same command"
    ):
        opened()


def test_offline_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"must reach the hub, but HF_HUB_OFFLINE=1 .* forbids it here"):
        opened()


def test_the_blob_of_the_stand_in_is_gits():
    """Of `printf hello | git hash-object --stdin`."""
    assert blob_of(b"hello") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
