"""`palimpsest data VERB` as a person calls it, with the tiny model through the real sampler, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ranks import own_environment
from trainer.cli import run_command
from trainer.sample.sampler import batch_seed

PUBMEDQA = Path(os.environ.get("PALIMPSEST_PUBMEDQA", "pubmedqa_labelled.json"))
QUESTIONS = [
    {
        "question": f"What is in box {n}?",
        "answer": f"thing number {n}",
        "document": f"Box {n} is {colour}. It has thing number {n}.",
    }
    for n, colour in enumerate(("red", "blue", "green", "black", "white", "brown"))
]
VERIFIER = """
import os, signal
def kills_once(prompt, answer, row):
    if prompt == "p2" and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return len(answer) % 2
def raises(prompt, answer, row):
    raise RuntimeError("out of order")
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path):
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


@pytest.fixture
def asked(here, model, tmp_path):
    """Return the words that name the tiny model and its cache, with a sampler that is soon done."""
    return [
        *("model.kind=pretrained", f"model.path={model}", f"data.cache_dir={tmp_path}/cache"),
        *("synthetic.max_new_tokens=6", "synthetic.sample.num_answers=3"),
    ]


def test_raft_writes_a_source_that_prepare_reads_and_says_the_same_again(here, capsys, model, tmp_path):
    given = write(tmp_path / "qa.jsonl", QUESTIONS)
    words = [f"synthetic.input={given}", "synthetic.output=raft.jsonl", "synthetic.raft.num_distractors=3"]
    assert run_command(["data", "raft", *words]) == 0
    first, rows = capsys.readouterr().out, read("raft.jsonl")
    assert len(rows) == 6 and "6 of 6 questions made into rows" in first
    assert rows[2]["messages"][-1]["content"] == (
        "##begin_quote##It has thing number 2.##end_quote##\n\nAnswer: thing number 2"
    )
    before = Path("raft.jsonl").stat().st_mtime_ns
    assert run_command(["data", "raft", *words]) == 0
    again = capsys.readouterr().out
    assert again == "These rows are there already.\n" + first
    assert Path("raft.jsonl").stat().st_mtime_ns == before
    source = [
        "data=chat",
        "data.sources.chat.path=raft.jsonl",
        "data.seq_len=512",
        "data.validation_frac=0",
        "train.max_epochs=1",
    ]
    source += [f"model.path={model}", "model.kind=pretrained", f"data.cache_dir={tmp_path}/cache"]
    assert run_command(["prepare", *source]) == 0
    assert "6 documents" in (told := capsys.readouterr().out) or "6 rows" in told, told


def test_sample_is_the_same_file_after_kill_9_and_is_what_the_sampler_says(here, asked, tmp_path, capsys):
    (here / "mine.py").write_text(VERIFIER)
    given = write(tmp_path / "prompts.jsonl", [{"prompt": f"p{n}"} for n in range(4)])
    words = ["data", "sample", *asked, f"synthetic.input={given}", "synthetic.sample.reference_column=null"]
    words += ["synthetic.sample.verifier=mine:kills_once", "synthetic.sample.write=rates"]
    command = [sys.executable, "-m", "trainer", *words, "synthetic.output=a.jsonl"]
    killed = subprocess.run(command, env=own_environment(), capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    parts = (here / ".a.jsonl.work" / "parts.jsonl").read_bytes()
    assert parts.count(b"\n") == 2 and not (here / "a.jsonl").exists()
    for name in ("a", "b"):
        assert run_command([*words, f"synthetic.output={name}.jsonl"]) == 0
    assert (here / "a.jsonl").read_bytes() == (here / "b.jsonl").read_bytes()
    assert not (here / ".a.jsonl.work").exists()
    rows, said = read("a.jsonl"), capsys.readouterr().out
    assert [row["prompt"] for row in rows] == [
        "p0",
        "p1",
        "p2",
        "p3",
    ] and "4 rows of 4 prompts, 12 answers" in said
    assert [row["provenance"]["parent"] for row in rows] == [f"prompts.jsonl:{n}" for n in range(1, 5)]
    assert "pass@1 " in said and "pass@3 " in said


def test_best_answers_are_those_of_plain_sampling_with_the_seed_of_their_row(here, asked, tmp_path):
    """The answer of row 1 is drawn here again, with the same generator, by plain transformers without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.config.model import ModelConfig
    from trainer.model.tokenizer import configured_tokenizer

    given = write(tmp_path / "prompts.jsonl", [{"prompt": f"p{n}", "answer": "x"} for n in range(2)])
    words = [*asked, f"synthetic.input={given}", "synthetic.output=a.jsonl", "synthetic.seed=3"]
    words += [
        "synthetic.sample.verifier=regex",
        "synthetic.sample.pattern=zz",
        "synthetic.sample.write=rates",
    ]
    assert run_command(["data", "sample", *words, "synthetic.sample.num_answers=2"]) == 0
    folder = next(word for word in asked if word.startswith("model.path=")).removeprefix("model.path=")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = configured_tokenizer(ModelConfig(), folder)
    text = tokenizer.render_chat([{"role": "user", "content": "p1"}], add_generation_prompt=True)
    ids = torch.tensor(tokenizer.encode_fragments([text])).repeat(2, 1)
    generator = torch.Generator().manual_seed(batch_seed(3, 1))
    for _ in range(6):
        with torch.no_grad():
            probs = model(ids).logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], 1)
    drawn = [tokenizer.decode(row.tolist()) for row in ids[:, -6:]]
    reached = [text for text in drawn if not any(mark in text for mark in tokenizer.special_texts)]
    assert reached, "a seed by which no answer ends early"
    pattern = "^" + "|^".join("".join(f"[{c}]" if c.isalnum() else "." for c in t.strip()) for t in reached)
    words = [word for word in words if not word.startswith(("synthetic.output", "synthetic.sample.pattern"))]
    words += ["synthetic.output=b.jsonl", f"synthetic.sample.pattern='{pattern}'"]
    assert run_command(["data", "sample", *words, "synthetic.sample.num_answers=2"]) == 0
    assert read("b.jsonl")[1]["pass_rate"] == len(reached) / 2 and read("a.jsonl")[1]["pass_rate"] == 0


def test_judge_reads_the_probabilities_of_plain_transformers_in_both_orders(here, asked, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    from trainer.config.model import ModelConfig
    from trainer.model.tokenizer import configured_tokenizer

    pairs = [("a", "bb"), ("ccc", "d"), ("e", "e")]
    given = write(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": a, "rejected": b} for a, b in pairs])
    words = [*asked, f"synthetic.input={given}", "synthetic.output=judged.jsonl"]
    words += ["synthetic.judge.question='{prompt} {a} {b}'", "synthetic.judge.answer_begins='('"]
    assert run_command(["data", "judge", *words]) == 0
    said, rows = capsys.readouterr().out, read("judged.jsonl")
    folder = next(word for word in asked if word.startswith("model.path=")).removeprefix("model.path=")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = configured_tokenizer(ModelConfig(), folder)

    def odds(a, b):
        turns = [{"role": "user", "content": f"p {a} {b}"}]
        text = tokenizer.render_chat(turns, add_generation_prompt=True) + "("
        with torch.no_grad():
            told = (
                model(torch.tensor(tokenizer.encode_fragments([text]))).logits[0, -1].double().log_softmax(-1)
            )
        one, other = (tokenizer.encode_fragments([letter])[0][0] for letter in "AB")
        return float(told[one] - told[other])

    wanted = []
    for a, b in pairs[:2]:
        found = (odds(a, b), -odds(b, a))
        if (found[0] > 0) == (found[1] > 0):
            wanted.append((sum(found) / 2, list(found)))
    assert [row["provenance"]["log_odds"] for row in rows] == [
        pytest.approx(two, abs=1e-4) for _, two in wanted
    ]
    assert [row["margin"] for row in rows] == [pytest.approx(abs(one), abs=1e-4) for one, _ in wanted]
    assert "dropped: 1 row whose two answers are the same" in said and "position consistency: " in said


def test_revise_and_questions_run_with_the_real_sampler(here, asked, tmp_path, capsys):
    """A random model writes nothing that can be kept: what becomes of it is counted, and the file is there."""
    (here / "principles.txt").write_text("Be kind.\n")
    given = write(tmp_path / "prompts.jsonl", [{"prompt": "p", "answer": "yes", "text": "A b c. D e f."}])
    words = [*asked, f"synthetic.input={given}"]
    more = ["synthetic.revise.principles=principles.txt", "synthetic.revise.answer_column=answer"]
    assert run_command(["data", "revise", *words, *more, "synthetic.output=r.jsonl"]) == 0
    assert " of 1 answer" in capsys.readouterr().out and (here / "r.jsonl").exists()
    assert run_command(["data", "questions", *words, "synthetic.output=q.jsonl"]) == 0
    said = capsys.readouterr().out
    assert (
        "0 rows of 1 part of documents" in said and "dropped: 1 row without a question and an answer" in said
    )
    assert (here / "q.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("raft", [], "`synthetic.input` must be given, but is null"),
        ("raft", [], "`synthetic.output` must be given, but is null"),
        ("raft", ["synthetic.output=a.txt", "synthetic.input=qa"], "the name of a .jsonl file, but is "),
        ("raft", ["IN", "synthetic.raft.oracle_share=1.5"], "oracle_share` must be in [0, 1], but is 1.5"),
        ("raft", ["IN", "synthetic.raft.num_distractors=6"], "is 6 and there are 6. Lower it, or give"),
        ("raft", ["IN", "synthetic.raft.min_distractors=5"], "at most num_distractors (4), but is 5"),
        ("raft", ["IN", "synthetic.raft.document_column=text"], "'text' is not in "),
        ("raft", ["IN", "synthetic.raft.quote=row"], "a column with quote=row, but is None"),
        ("raft", ["IN", "synthetic.raft.distractors=given"], "list of documents with distractors=given"),
        ("raft", ["IN", "synthetic.raft.prompt='{question}'"], "must be a text with {documents}, {question}"),
        ("raft", ["IN", "synthetic.raft.corpus=absent.jsonl"], "`synthetic.raft.corpus` "),
        ("raft", ["IN", "synthetic.id_column=question", "synthetic.raft.answer_column=none"], "'none' is not in"),
        ("raft", ["EMPTY"], "`synthetic.input` must hold rows, but "),
        ("raft", ["BROKEN"], "`synthetic.input`: "),
        ("raft", ["ABSENT"], "`synthetic.input` "),
        ("sample", ["IN"], "`synthetic.sample.verifier` must be given without"),
        ("sample", ["IN", "synthetic.sample.verifier=wrong"], "MODULE:FUNCTION, but is 'wrong'"),
        ("sample", ["IN", "synthetic.sample.verifier=regex"], "a regular expression with verifier=regex"),
        ("sample", ["IN", "synthetic.sample.verifier=exact", "synthetic.sample.pattern=a"], "with a group"),
        ("sample", ["PROMPTS", "synthetic.sample.verifier=no_such:thing"], "No module named 'no_such'"),
        ("sample", ["PROMPTS", "synthetic.sample.verifier=exact", "synthetic.sample.reference_column=gold"],
         "`synthetic.sample.reference_column` must name a column that every row has, but 'gold' is not in"),
        ("sample", ["PROMPTS", "synthetic.sample.reward_model=nowhere"], "of an exported reward model, but"),
        ("revise", ["PROMPTS"], "`synthetic.revise.principles` must be given"),
        ("revise", ["PROMPTS", "NONE"], "`synthetic.revise.principles` must hold a principle, but"),
        ("judge", ["PROMPTS", "synthetic.judge.first_column=a"], "'a' is not in "),
        ("questions", ["PROMPTS", "synthetic.engine=vllm"], "vllm"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence_and_nothing_is_written(
    refuse, asked, tmp_path, verb, words, said
):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jsonl").write_text('{"question": 1}\n{"a"\n')
    (tmp_path / "none.txt").write_text("# to be written\n")
    out = f"synthetic.output={tmp_path}/out.jsonl"
    named = {
        "IN": [f"synthetic.input={write(tmp_path / 'qa.jsonl', QUESTIONS)}", out],
        "PROMPTS": [f"synthetic.input={write(tmp_path / 'p.jsonl', [{'prompt': 'p', 'answer': '1'}])}", out],
        "EMPTY": [f"synthetic.input={tmp_path}/empty.jsonl", out],
        "BROKEN": [f"synthetic.input={tmp_path}/broken.jsonl", out],
        "ABSENT": [f"synthetic.input={tmp_path}/absent.jsonl", out],
        "NONE": [f"synthetic.revise.principles={tmp_path}/none.txt"],
    }
    given = [one for word in words for one in named.get(word, [word])]
    assert said in refuse("data", verb, *asked, *given)
    assert not [path.name for path in tmp_path.iterdir() if "out.jsonl" in path.name]


def test_a_verifier_that_fails_on_every_answer_is_refused_and_its_work_goes(here, asked, tmp_path, capsys):
    (here / "mine.py").write_text(VERIFIER)
    given = write(tmp_path / "prompts.jsonl", [{"prompt": f"p{n}"} for n in range(9)])
    words = ["data", "sample", *asked, f"synthetic.input={given}", "synthetic.sample.reference_column=null"]
    words += ["synthetic.sample.verifier=mine:raises", f"synthetic.output={here}/a.jsonl"]
    assert run_command(words) == 2
    assert "on all of the first 18 answers: it raised RuntimeError (out of order)" in capsys.readouterr().err
    assert not (here / "a.jsonl").exists() and not (here / ".a.jsonl.work").exists()


def test_a_file_that_is_there_is_refused_as_it_is(here, tmp_path, capsys):
    given = write(tmp_path / "qa.jsonl", QUESTIONS)
    (here / "mine.jsonl").write_text("mine")
    assert run_command(["data", "raft", f"synthetic.input={given}", "synthetic.output=mine.jsonl"]) == 2
    assert "holds a file that no data command wrote instead. Give another file" in capsys.readouterr().err
    assert (here / "mine.jsonl").read_text() == "mine" and [one.name for one in here.iterdir()] == [
        "mine.jsonl"
    ]


@pytest.mark.skipif(not PUBMEDQA.exists(), reason="PALIMPSEST_PUBMEDQA names no file")
def test_pubmedqa_becomes_rows_whose_quotations_are_in_the_abstract(here, capsys):
    columns = {
        "question": "QUESTION",
        "answer": "final_decision",
        "document": "CONTEXTS",
        "reasoning": "LONG_ANSWER",
    }
    words = [f"synthetic.raft.{name}_column={column}" for name, column in columns.items()]
    words += [
        f"synthetic.input={PUBMEDQA}",
        "synthetic.output=raft.jsonl",
        "synthetic.raft.min_distractors=2",
    ]
    assert run_command(["data", "raft", *words]) == 0
    abstracts = [
        "\n\n".join(part.strip() for part in row["CONTEXTS"])
        for row in json.loads(PUBMEDQA.read_text()).values()
    ]
    rows = read("raft.jsonl")
    assert len(rows) > 900
    for row in rows:
        number = int(row["provenance"]["parent"].rpartition(":")[2])
        quoted = row["messages"][-1]["content"].partition("##begin_quote##")[2].partition("##end_quote##")[0]
        assert quoted and quoted in abstracts[number - 1]
