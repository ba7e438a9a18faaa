"""The pages that people are promised are there, short, and name files and commands that there are."""

import re
import shlex

import pytest
import yaml

from tests.house.test_packaging import SETTINGS
from tests.house.tree import ROOT

DOCS = ROOT / "docs"
OF_THE_PROJECT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
SUBJECTS = {
    "quickstart": "Quickstart",
    "when": "prompt",
    "data": "mask",
    "continued-pretraining": "Continued pretraining",
    "replay": "forget",
    "adapters": "LoRA",
    "choosing": "qlora",
    "evaluation": "gate",
    "cluster": "hostfile",
    "images": "image",
    "sweeps": "hydra/sweeper",
    "run-directory": "metrics.jsonl",
    "guarantees": "Resume",
    "performance": "tok/s/GPU",
    "models": "families",
    "configuration": "zero.stage",
    "errors": "must be",
    "design": "Which test holds which rule",
    "trackers": "mlflow",
    "export": "export.hub",
    "ask": "generate",
    "help": "completion",
    "security": "Secrets",
}
"""Pages by what a person looks for, and a word that such a page has."""
LOOKED_UP = {"configuration": "one heading a key", "errors": "one heading a sentence"}
"""Pages that nobody reads from top to bottom."""
MAX_LINES = 160
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / name / "README.md" for name in ("benchmarks", "docker")),
        *DOCS.glob("*.md"),
    ]
)
NAMED = re.compile(r"`((?:tests|trainer|launch|docs|benchmarks|conf|docker)/[^`\s]+)`")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_files_that_a_project_has_are_there():
    assert not [name for name in OF_THE_PROJECT if not text_of(name).strip()]
    assert "Apache License" in text_of("LICENSE") and "Version 2.0, January 2004" in text_of("LICENSE")
    assert "private vulnerability reporting" in text_of("SECURITY.md")
    assert "LICENSE" in text_of("CONTRIBUTING.md") and "SECURITY.md" in text_of("CONTRIBUTING.md")


@pytest.mark.parametrize(
    ("page", "headings", "words"),
    [
        (
            "CONTRIBUTING.md",
            ["Where a line belongs", "A change"],
            ["bash tests/run.sh", "trainer/config/check*.py"],
        ),
        (
            "SECURITY.md",
            ["Reporting", "What may run as code, and what may not", "Secrets"],
            ["private vulnerability reporting"],
        ),
    ],
)
def test_who_wants_to_change_or_report_something_finds_where(page, headings, words):
    text = text_of(page)
    assert set(headings) <= set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert not [word for word in words if word not in text]


def test_every_page_can_be_reached_from_the_contents():
    contents = re.findall(r": ([\w-]+)\.md$", text_of("mkdocs.yml").partition("\nnav:")[2], re.MULTILINE)
    assert sorted(contents) == sorted(file.stem for file in DOCS.glob("*.md"))
    assert set(SUBJECTS) <= set(contents)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_there_is_a_page_about_what_people_look_for(subject):
    assert SUBJECTS[subject] in text_of(f"docs/{subject}.md")


@pytest.mark.parametrize("page", sorted(file.stem for file in DOCS.glob("*.md")))
def test_a_page_begins_with_an_example_and_is_short(page):
    text = text_of(f"docs/{page}.md")
    assert re.match(r"# [^\n]+\n\n```", text), "a title, then a block that shows what it is about"
    own = re.sub(r"<!-- written by .*?<!-- to here -->", "", text, flags=re.DOTALL)
    assert page in LOOKED_UP or len(own.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    named = [
        name.partition("::")[0].rstrip("/") for name in NAMED.findall(text_of(page)) if "NAME" not in name
    ]
    assert not [name for name in named if not any(ROOT.glob(name))]


def shown_in(page):
    """Return the commands of a page's blocks, without what they say behind them, and those within its lines."""
    text = text_of(page)
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    parts = [part for line in lines for part in line.partition("#")[0].split("&&")]
    return [shlex.split(part) for part in (*parts, *re.findall(r"`(python -m [^`]+)`", text))]


def test_the_commands_for_contributors_are_ones_that_there_are():
    """Programs come with the extra `dev`; scripts, modules and tests are files."""
    shown = shown_in("CONTRIBUTING.md")
    assert len(shown) >= 5
    for program, *words in shown:
        match program:
            case "bash":
                assert (ROOT / words[0]).is_file(), words
                folders, wanted = [word for word in words[1:] if "/" in word], words[-1]
                tests = [
                    file.read_text(encoding="utf-8")
                    for one in folders
                    for file in (ROOT / one).glob("test_*.py")
                ]
                assert not folders or any(re.search(rf"def test_\w*{wanted}", test) for test in tests), words
            case "python":
                source = (ROOT / f"{words[1].replace('.', '/')}.py").read_text(encoding="utf-8")
                assert '__name__ == "__main__"' in source, words
            case "source":
                assert words == [".venv/bin/activate"] and "-m venv" in text_of("launch/venv.sh")
            case _:
                extra = [
                    re.split(r"[=<>]", one)[0] for one in SETTINGS["project"]["optional-dependencies"]["dev"]
                ]
                assert program in extra, program


def test_what_runs_before_a_commit_is_what_the_tests_run():
    hooks = [
        hook["entry"].split()[0]
        for repo in yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
        for hook in repo["hooks"]
    ]
    packages = " ".join(SETTINGS["project"]["optional-dependencies"]["dev"])
    shipped_as = {"lint-imports": "import-linter"}
    assert not [name for name in hooks if shipped_as.get(name, name) not in packages]
