"""Every command line in README and docs composes, and breaks no rule, as whoever copies it would find out."""

import collections
import dataclasses
import functools
import re

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from launch.multirun import PLUGINS
from tests.helpers.shown_commands import shown_commands, shown_configuration
from tests.house.tree import ROOT
from trainer.command.invocation import frozen_config, parse
from trainer.command.rules import broken_rules
from trainer.command.usage import COMMANDS
from trainer.config.check import find_problems
from trainer.config.check_cluster import submit_problems
from trainer.config.entry import is_removal
from trainer.config.options import group_options
from trainer.config.override import is_swept, read_entries, take_out
from trainer.config.store import compose_config, to_dataclass
from trainer.errors import TrainerError

FOLDERS = (".", "docs", "docker", "benchmarks")
PAGES = sorted(str(file.relative_to(ROOT)) for name in FOLDERS for file in (ROOT / name).glob("*.md"))
SHOWN = shown_commands(ROOT, PAGES)
CONFIGURATION = {
    name: text
    for name, text in shown_configuration(ROOT, PAGES).items()
    if name.partition("/")[0] in group_options()
}
OF_WORDS = ("status", "completion", "explain", "schema", "init")
"""Commands that compose no run; that there are such commands is looked at."""
OF_A_RUN = ("evaluate", "export", "report", "verify")
"""Commands that go on from a frozen configuration where the words name no data."""
ELLIPSIS = "..."
PLACE = re.compile(r"^(run_dir|export\.output_dir|data\.sources\.\w+\.path)=.*", re.DOTALL)
MADE = """# @package _global_
defaults: [override /recipe: lora, override /model: llama3_1_8b_instruct, override /data: chat]
data: {sources: {chat: {path: chats.jsonl}}}
"""
"""What stands for the file that `palimpsest init name=NAME` would write."""


def kind_of(shown):
    """Return how a command line can be looked at."""
    if shown.error is not None:
        return "refused"
    command = shown.words[0] if shown.words else ""
    is_review = shown.words[:2] == ("data", "review")
    if is_review or command in OF_WORDS or command.startswith("-") or "--help" in shown.words:
        return "words"
    if command in OF_A_RUN and not any(word.startswith("data=") for word in shown.words):
        return "of a run"
    return "in part" if ELLIPSIS in shown.words else "composed"


def given(shown):
    """Return the words without the places that a page leaves open."""
    words = [word for word in shown.words if word != ELLIPSIS]
    return [f"{word.removesuffix(ELLIPSIS)}FILE" if word.endswith(f"={ELLIPSIS}") else word for word in words]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Write the files of configuration that pages show into a folder for hydra.searchpath."""
    folder = tmp_path_factory.mktemp("site")
    made = [
        word for one in SHOWN if one.words[:1] == ("init",) for word in one.words if word.startswith("name=")
    ]
    files = {f"experiment/{word.removeprefix('name=')}": MADE for word in made} | CONFIGURATION
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def variables():
    """Set what pages tell to export before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_a_page")
        yield


@pytest.fixture(scope="module")
def composed(site):
    """Return a function that composes words: the options of groups together, once, and the other words onto that."""

    @functools.cache
    def with_options(options):
        # What an option leaves open is given by the words that follow.
        return OmegaConf.structured(compose_config([*options, f"hydra.searchpath=[file://{site}]"]))

    @functools.cache
    def merged(options, others):
        config = OmegaConf.merge(with_options(options))
        return to_dataclass(OmegaConf.merge(config, read_entries(take_out(config, others))))

    def read(words):
        groups = group_options()
        options = tuple(sorted(word for word in words if word.partition("=")[0] in groups))
        others = [word for word in words if word not in options]
        read_entries([word for word in others if not is_removal(word)])
        # Where a run lies and which files it reads is of no matter to the rules, and often all that differs.
        return merged(options, tuple(PLACE.sub(r"\1=PLACE", word) for word in others))

    return read


def one_value(word):
    """Return a word with the first of several values."""
    if not is_swept(word):
        return word
    value = OverridesParser.create().parse_override(word).value()
    return f"{word.partition('=')[0]}={value.list[0] if hasattr(value, 'list') else value.start}"


def of_hydra(words):
    """Check the words that choose a launcher or a sweeper; return the others."""
    known = {f"{group}={option}" for group, option, _, _ in PLUGINS}
    for word in words:
        if word.startswith(("hydra/launcher=", "hydra/sweeper=")):
            assert word in known, word
    return [word for word in words if not word.startswith("hydra")]


@pytest.mark.parametrize("shown", [one for one in SHOWN if kind_of(one) in ("composed", "in part")], ids=str)
def test_a_shown_command_composes_and_breaks_no_rule(shown, composed):
    invocation = parse(given(shown))
    assert any(is_swept(word) for word in invocation.overrides) <= invocation.is_multirun
    words = [one_value(word) for word in of_hydra(invocation.overrides)]
    if invocation.command == "quickstart":
        words = ["experiment=quickstart", "data.sources.python_reference.path=FILE", *words]
    config = composed(words)
    ranks = config.cluster.num_nodes * max(config.cluster.ranks_per_node, 1)
    problems = broken_rules(config, invocation.command, ranks)
    if invocation.command == "submit":
        # The checkout may lie on a node's own disk.
        cluster = dataclasses.replace(config.cluster, node_local_paths=["/nowhere"])
        problems += submit_problems(cluster, config.run_dir)
    if kind_of(shown) == "composed":
        problems = [found for found in problems if found.key != "tune.start"]  # the reader has that folder
        assert not problems, [found.sentence for found in problems]


@pytest.mark.parametrize("shown", [one for one in SHOWN if kind_of(one) == "of a run"], ids=str)
def test_a_shown_command_goes_on_from_a_run(shown, composed):
    invocation = parse(given(shown))
    assert any(word.startswith(("run_dir=", "export.adapters=")) for word in invocation.overrides)
    if not any(word.startswith("evaluate.scores.file=") for word in invocation.overrides):  # asks an export
        with pytest.raises(TrainerError, match=r"(no|a) config\.yaml|must hold a run, but .* is not there"):
            frozen_config(invocation)
    run = ["recipe=lora", "model=llama3_1_8b_instruct", "data=chat", "data.sources.chat.path=chats.jsonl"]
    run += ["replay=general"]  # the default gate is about general text, too
    assert not list(find_problems(composed([*run, *invocation.overrides]), 1))


@pytest.mark.parametrize("shown", [one for one in SHOWN if kind_of(one) == "words"], ids=str)
def test_a_shown_command_is_one_that_there_is(shown):
    assert shown.words[0] in COMMANDS or shown.words[0] == "--help"


@pytest.mark.parametrize("shown", [one for one in SHOWN if kind_of(one) == "refused"], ids=str)
def test_a_shown_error_is_what_a_person_gets(shown):
    with pytest.raises(TrainerError) as caught:
        compose_config(parse(shown.words).overrides)
    assert str(caught.value) == shown.error


@pytest.mark.parametrize(
    "name", [name for name in CONFIGURATION if not any(name.replace("/", "=") in one.words for one in SHOWN)]
)
def test_a_shown_file_that_no_command_names_composes(name, composed):
    group, option = name.split("/")
    composed([f"{group}={option}"])


def test_every_shown_command_was_looked_at():
    counted = collections.Counter(kind_of(one) for one in SHOWN)
    assert counted.total() == len(SHOWN) and counted["composed"] >= 35 and counted["of a run"] >= 12
    assert len(CONFIGURATION) >= 2
    # A line that the reader of blocks does not take for a command would be skipped in silence.
    for page in PAGES:
        covered = {number for one in SHOWN if one.page == page for number in range(one.line, one.last + 1)}
        for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
            assert number in covered or not line.lstrip("$ ").startswith("palimpsest "), f"{page}:{number}"
