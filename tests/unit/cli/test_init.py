"""`palimpsest init`: what it writes composes, plans and prepares as it is; what it cannot read is a sentence."""

import json
import os
import shlex
import shutil

import pytest
import yaml

from trainer.cli import run_command
from trainer.command.first_look import choose_sizes
from trainer.command.row_tokens import Tokens
from trainer.config.cluster import Scheduler
from trainer.config.data import Format, SourceConfig, TokenValue
from trainer.config.model import ModelKind
from trainer.config.preference import PreferenceLoss
from trainer.config.store import compose_config
from trainer.data.rows.guess import Guess, Holding
from trainer.model.tiny import build_tokenizer

SHAPE = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SHAPE |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 264,
    "max_position_embeddings": 512,
}
ROWS = {
    "messages": {
        "messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello {0}."}]
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello {0}."}]
    },
    "alpaca": {"instruction": "Count {0}", "input": "now", "output": "{0}"},
    "pairs": {"prompt": "Count {0}", "completion": "{0}"},
    "preferences": {"prompt": "Count {0}", "chosen": "{0}", "rejected": "No {0}."},
    "conversations": {
        "chosen": [{"role": "user", "content": "Hi {0}?"}, {"role": "assistant", "content": "Hello {0}."}],
        "rejected": [{"role": "user", "content": "Hi {0}?"}, {"role": "assistant", "content": "No."}],
    },
    "labelled": {"prompt": "Count {0}", "completion": "{0}", "label": True},
    "classes": {"prompt": "Count {0}", "completion": "{0}", "label": 1},
    "text": {"text": "A document about {0} and what follows from it."},
}
LOOKS = {
    "messages": (Format.chat, False, "messages", "lora"),
    "sharegpt": (Format.chat, False, "conversations", "lora"),
    "alpaca": (Format.completion, True, "instruction", "lora"),
    "pairs": (Format.completion, True, "prompt", "lora"),
    "preferences": (Format.preference, True, "prompt", "preference_lora"),
    "conversations": (Format.preference, True, "prompt", "preference_lora"),
    "labelled": (Format.unpaired, True, "prompt", "preference_lora"),
    "classes": (Format.completion, True, "prompt", "lora"),
    "text": (Format.text, False, "text", "continued_pretrain"),
}


def write_rows(path, row, count=60):
    lines = [json.dumps(row).replace("{0}", str(number)) for number in range(count)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def model(tmp_path):
    """Return the folder of a model without weights."""
    folder = tmp_path / "base"
    build_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


@pytest.fixture
def init(here, capsys):
    """Return a function that runs init and returns what it said."""

    def run(*words):
        capsys.readouterr()
        assert run_command(["init", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("layout", ROWS)
def test_what_is_written_composes_for_every_layout(init, here, model, layout):
    write_rows(here / f"{layout}.jsonl", ROWS[layout])
    said = init(f"model={model}", f"data={layout}.jsonl", "name=first")
    assert "Written: palimpsest/experiment/first.yaml" in said and "has no weights" in said
    config = compose_config([f"hydra.searchpath=[file://{here}/palimpsest]", "experiment=first"])
    (source,) = config.data.sources.values()
    format_, as_chat, column, recipe = LOOKS[layout]
    columns = {Format.chat: "messages", Format.text: "text"}
    assert (source.format, source.as_chat, config.kind.value) == (format_, as_chat, recipe)
    assert getattr(source.columns, columns.get(format_, "prompt")) == column
    assert source.path == str(here / f"{layout}.jsonl") and config.data.seq_len == 512
    assert (config.model.kind, config.model.path) == (ModelKind.pretrained, str(model))


@pytest.mark.parametrize(
    ("layout", "loss", "unit"),
    [("preferences", PreferenceLoss.dpo, "pair"), ("labelled", PreferenceLoss.kto, "answer")],
)
def test_pairs_and_labelled_answers_get_an_objective_that_reads_them(
    init, here, model, capsys, layout, loss, unit
):
    rows = [{**ROWS[layout], "prompt": f"Count {n}"} | {"label": n % 2 > 0} for n in range(60)]
    rows = rows if unit == "answer" else [{k: v for k, v in row.items() if k != "label"} for row in rows]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = init(f"model={model}", "data=rows.jsonl", "name=first")
    assert f"of 60 {unit}s, so that" in said and f"the longest {unit} has about" in said
    words = [f"hydra.searchpath=[file://{here}/palimpsest]", "experiment=first"]
    config = compose_config(words)
    assert config.objective.preference.loss is loss and config.data.values == [TokenValue.label]
    assert run_command(["prepare", *words, f"data.cache_dir={here}/cache", "data.num_workers=1"]) == 0
    assert f"{unit}s" in capsys.readouterr().out
    assert compose_config([*words, "objective=rpo"]).objective.preference.nll_weight == 1


def test_the_commands_that_it_names_plan_and_prepare(init, here, model, capsys):
    """The model has no weights yet: what trains it is not named, but what is missing."""
    write_rows(here / "our chats.jsonl", ROWS["sharegpt"])
    said = init(f"model={model}", "data=our chats.jsonl")
    assert said.splitlines()[-1] == f"To train: give {model} its weights first."
    lines = [shlex.split(line) for line in said.splitlines() if line.startswith("  palimpsest ")]
    assert all("'hydra.searchpath=[file://" in line for line in said.splitlines() if "searchpath" in line)
    assert [words[1] for words in lines] == ["plan", "prepare"]
    assert lines[0][2] == "experiment=our_chats"
    text = (here / "palimpsest/experiment/our_chats.yaml").read_text()
    assert (
        text.startswith("# @package _global_\n# lora of ") and "(ShareGPT, 1 file; all 60 rows read)" in text
    )
    plan = [*lines[0][1:], "plan.gpu_gib=80", "plan.strict=true", "cluster.ranks_per_node=1"]
    assert run_command(plan) == 0, capsys.readouterr().err
    assert "Fits a GPU of 80 GiB" in capsys.readouterr().out
    prepare = [*lines[1][1:], f"data.cache_dir={here}/cache", "data.num_workers=1"]
    assert run_command(prepare) == 0, capsys.readouterr().err
    assert "Hello " in capsys.readouterr().out


def test_the_experiment_gives_way_to_words_and_to_its_own_recipe(init, here):
    write_rows(here / "a.jsonl", ROWS["text"])
    init("model=tiny", "data=a.jsonl", "recipe=full_finetune", "folder=conf", "ignore=[]")
    words = [f"hydra.searchpath=[file://{here}/conf]", "experiment=a"]
    lines = []
    config = compose_config([*words, "train.max_steps=3"], say=lines.append)
    assert (config.model.kind, config.train.max_steps, config.train.max_epochs) == (ModelKind.tiny, 3, None)
    assert len(lines) == 1


def test_a_column_that_would_change_what_is_learnt_is_named_and_can_be_ignored(init, refuse, here, model):
    write_rows(here.parent / "a.jsonl", ROWS["messages"] | {"loss_weight": 3, "history": ["x"]})
    words = [f"model={model}", f"data={here.parent}/a.jsonl"]
    assert "columns.ignore=[" in refuse("init", *words)
    init(*words, "ignore=[loss_weight,history]")
    tree = yaml.safe_load((here / "palimpsest/experiment/a.yaml").read_text())
    assert tree["data"]["sources"]["a"]["columns"] == {"ignore": ["loss_weight", "history"]}


def test_sizes_fit_what_it_looked_at_and_it_says_so(init, here, model):
    """60 documents of 60 letters, each a token: 3600 tokens, 7 whole packs of 512, one of them a step."""
    write_rows(here / "a.jsonl", {"text": "x" * 60})
    said = init(f"model={model}", "data=a.jsonl", "recipe=lora")
    assert "llama, 2 layers, 35,488 parameters, context 512, with a chat template." in said
    assert "a.jsonl is text (format: text, read from text); all 60 rows read, with about 3,600 tokens" in said
    assert "the longest document has about 60." in said
    assert "Chosen: recipe lora (as asked); data.seq_len=512" in said and "about 7 steps an epoch" in said
    text = (here / "palimpsest/experiment/a.yaml").read_text()
    assert "global_batch_tokens: 512 " in text and "# optim: {lr: 1.0e-4}" in text


def test_what_has_many_tokens_gets_the_recipes_sizes():
    holding = Holding(num_rows=10_000, is_whole=False, num_chars=20_000_000)
    guess = Guess(SourceConfig(format=Format.chat), "", {}, [], 1, [], holding)
    sizes = choose_sizes(guess, Tokens(900, 5_000_000, True), None, num_gpus=8, share_held_out=0.01)
    assert (sizes.seq_len, sizes.batch_tokens) == (4096, 131072)


WRONG = {
    "no layout": ("model={0}/base data={0}/odd.csv", "has the columns [a, b] instead"),
    "an empty file": (
        "model={0}/base data={0}/empty.jsonl",
        "empty.jsonl' has no row instead. Give files that hold some.",
    ),
    "a head alone": ("model={0}/base data={0}/head.csv", "head.csv' has no row instead. Give files that"),
    "no file": ("model={0}/base data={0}/none.jsonl", "matches files, but is"),
    "another key": ("model={0}/base data={0}/text_key.jsonl", "Rename 'text' to 'content' in these rows."),
    "nothing to learn": (
        "model={0}/base data={0}/void.jsonl",
        "3 of the first 3 rows: no question. Mend the rows.",
    ),
    "columns to rename": (
        "model={0}/base data={0}/asked.csv",
        "such as ask to prompt and reply to completion, or",
    ),
    "a broken turn": ("model={0}/base data={0}/broken.jsonl", "an assistant turn in every conversation"),
    "no model": ("model={0} data={0}/a.jsonl", "folder with a config.json"),
    "no tokenizer": (
        "model={0}/bare data={0}/a.jsonl",
        "must be a folder with a config.json and a tokenizer",
    ),
    "no template": ("model={0}/plain data={0}/a.jsonl", "Give chat_template=FILE"),
    "no such template": ("model={0}/base data={0}/a.jsonl chat_template=x.jinja", "there is none at x.jinja"),
    "no Jinja": (
        "model={0}/base data={0}/a.jsonl chat_template={0}/bad.jinja",
        "`chat_template` must be valid Jinja",
    ),
    "a template that fails": (
        "model={0}/base data={0}/a.jsonl chat_template={0}/failing.jinja",
        "failing.jinja, line 2: 'str object' has no attribute 'nope'. Mend it there, or give chat_template=FILE.",
    ),
    "no data": ("model={0}/base", "`data` must be given"),
    "no words": ("", "`model` must be given"),
    "a strange word": ("modle={0}/base data={0}/a.jsonl", "is given 'modle="),
    "a strange option": ("--sight", "or --site, but is given '--sight' instead"),
    "a key": ("model={0}/base data={0}/a.jsonl optim.lr=1", "Give it to the commands that init prints, or"),
    "nodes": (
        "model={0}/base data={0}/a.jsonl cluster.num_nodes=2",
        "give cluster=slurm and it to `palimpsest submit`, with the words that init prints for train.",
    ),
    "a name with a slash": ("model={0}/base data={0}/a.jsonl name=a/b", "`name` must be letters"),
    "a strange recipe": ("model={0}/base data={0}/a.jsonl recipe=lorra", "`recipe` must be one of"),
    "a folder that is none": (
        "model={0}/base data={0}/a.jsonl folder={0}/a.jsonl",
        "`folder` must be one you can",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_it_cannot_use_is_a_sentence_and_nothing_is_written(refuse, model, name):
    words, sentence = WRONG[name]
    outside = model.parent
    (outside / "odd.csv").write_text("a,b\n1,2\n")
    (outside / "empty.jsonl").touch()
    (outside / "bad.jinja").write_text("{{ }}")
    (outside / "failing.jinja").write_text("{% for m in messages %}\n{{ m.content.nope.x }}{% endfor %}")
    (outside / "head.csv").write_text("prompt,completion\n")
    write_rows(outside / "a.jsonl", ROWS["messages"])
    (outside / "asked.csv").write_text("id,ask,reply\n1,Why is it so?,Because it is.\n")
    turns = [{"role": "user", "text": "Hi?"}, {"role": "assistant", "text": "Hello."}]
    write_rows(outside / "text_key.jsonl", {"messages": turns})
    write_rows(outside / "void.jsonl", {"messages": [{"role": "assistant", "content": "x"}]}, count=3)
    write_rows(outside / "broken.jsonl", {"messages": [{"role": "user", "content": "Hi?"}]})
    shutil.copytree(model, outside / "plain", ignore=shutil.ignore_patterns("chat_template*"))
    shutil.copytree(model, outside / "bare", ignore=shutil.ignore_patterns("*token*"))
    assert sentence in refuse("init", *words.format(outside).split())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "model={0}/bse data=none.jsonl name=a/b recipe=lorra",
            [
                "`name` must be letters",
                "'lorra' instead. Did you mean lora?",
                "`model",
                "matches files, but is",
            ],
        ),
        (
            "model={0}/base data={0}/a.jsonl nam=z fodlr=x",
            ["'nam=z' instead. Did you mean name", "Did you mean folder=...?"],
        ),
        ("model={0}/bse data=none.jsonl", ["`model", "matches files, but is"]),
        ("", ["`model` must be given", "`data` must be given"]),
        ("modle={0}/base", ["Did you mean model=...?", "`data` must be given"]),
    ],
)
def test_everything_that_is_wrong_is_told_at_once(refuse, model, words, told):
    write_rows(model.parent / "a.jsonl", ROWS["messages"])
    message = refuse("init", *words.format(model.parent).split())
    assert f"What `palimpsest init` was given has {len(told)} problems:" in message
    assert not [one for one in told if one not in message], message


def test_a_file_that_is_there_is_kept(init, here, model, capsys):
    write_rows(here / "a.jsonl", ROWS["text"])
    init(f"model={model}", "data=a.jsonl")
    file = here / "palimpsest/experiment/a.yaml"
    file.write_text("mine")
    assert run_command(["init", f"model={model}", "data=a.jsonl"]) == 2
    assert "is there already. Set name=a-2, or" in capsys.readouterr().err and file.read_text() == "mine"


def test_a_name_that_cannot_be_is_answered_with_one_like_it_that_is_free(here, model, capsys):
    write_rows(here / "a.jsonl", ROWS["text"])
    words = ["init", f"model={model}", "data=a.jsonl", "name=größter versuch"]
    assert run_command(words) == 2 and "Set name=grosster-versuch." in capsys.readouterr().err
    taken = here / "palimpsest/experiment/grosster-versuch.yaml"
    taken.parent.mkdir(parents=True)
    taken.write_text("mine")
    assert run_command(words) == 2 and "Set name=grosster-versuch-2." in capsys.readouterr().err


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """Return a function that puts a sinfo on the PATH that tells of these partitions."""

    def put(*lines):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        (tmp_path / "bin" / "sinfo").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    return put


def composed_site(here, name="ours"):
    return compose_config([f"hydra.searchpath=[file://{here}/palimpsest]", f"cluster={name}"]).cluster


def test_a_site_file_takes_the_partition_with_most_gpus_from_sinfo(init, here, sinfo):
    sinfo(
        "cpu*|up|90|(null)|64|infinite", "gpu|up|4|gpu:h100:8|96|2-00:00:00", "old|up|9|gpu:v100:2|32|1:00:00"
    )
    assert "Written: palimpsest/cluster/ours.yaml" in init("--site")
    cluster = composed_site(here)
    assert (cluster.scheduler, cluster.partition, cluster.ranks_per_node) == (Scheduler.slurm, "gpu", 8)
    assert (cluster.cpus_per_rank, cluster.time_limit_min, cluster.mem) == (12, 2880, "0")


def test_a_site_without_gpus_gets_one_rank_a_node(init, here, sinfo):
    sinfo("cpu*|up|90|(null)|64|infinite")
    init("--site", "name=cpus")
    cluster = composed_site(here, "cpus")
    assert (cluster.ranks_per_node, cluster.num_gpus_asked, cluster.cpus_per_rank, cluster.mem) == (
        1,
        0,
        64,
        None,
    )


def test_a_site_file_can_be_begun_where_there_is_no_sinfo(init, here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    said = init("--site")
    assert (
        "there is no sinfo here. Fill in partition, and ranks_per_node where a node has other than 8 GPUs."
        in said
    )
    assert composed_site(here).ranks_per_node == 8 and composed_site(here).partition is None


def test_a_site_file_is_begun_where_sinfo_does_not_answer_and_the_first_line_says_why(init, here, sinfo):
    sinfo("nothing")
    (here.parent / "bin" / "sinfo").write_text(
        "#!/bin/sh\necho 'sinfo: error: down' >&2; echo more >&2; exit 1\n"
    )
    said = init("--site")
    assert "The site was not asked: sinfo does not answer (down). Fill in" in said and "more" not in said
    assert composed_site(here).ranks_per_node == 8


def test_one_text_of_paragraphs_is_split_so_that_some_can_be_held_out(init, here, model):
    """Of one document nothing is held out, and the run ends without a comparison."""
    (here / "book.txt").write_text("A first paragraph.\n\nAnother one\nof two lines.\n\n\nThe last.\n")
    said = init(f"model={model}", "data=book.txt")
    assert "split at blank lines (txt_documents: paragraph)" in said and "all 3 rows read" in said
    written = yaml.safe_load((here / "palimpsest" / "experiment" / "book.yaml").read_text())
    assert written["data"]["sources"]["book"]["txt_documents"] == "paragraph"


def test_one_text_that_cannot_be_split_so_is_told(init, here, model):
    (here / "book.txt").write_text("A text without paragraphs.")
    assert "one document, of which none can be held out" in init(f"model={model}", "data=book.txt")


def test_rows_that_prepare_would_refuse_get_the_fix_and_no_experiment(init, refuse, here, model):
    """The template of this model knows of no tools."""
    tool = {"type": "function", "function": {"name": "weather", "description": "Look.", "parameters": {}}}
    write_rows(here.parent / "tools.jsonl", {**ROWS["messages"], "tools": [tool]}, count=3)
    said = refuse("init", f"model={model}", f"data={here.parent}/tools.jsonl")
    assert said == (
        "`data` must hold rows that the model's chat template renders, but it does not render 3 of 3 rows "
        f"that were tried:\n  - {here.parent}/tools.jsonl, line 1 and 2 more rows: tool schemas that it "
        "leaves out or cuts. A row must hold only what the chat template renders whole. Give chat_template=FILE, "
        "one that renders tools, or take the tools out of the source."
    )
    write_rows(here / "plain.jsonl", ROWS["messages"], count=3)
    init(f"model={model}", "data=plain.jsonl")


def test_rows_for_a_template_that_is_not_here_are_told(init, here):
    turns = [{"role": "system", "content": "Be brief."}, *ROWS["messages"]["messages"]]
    write_rows(here / "a.jsonl", {"messages": turns}, count=3)
    said = init("model=llama3_1_8b_instruct", "data=a.jsonl")
    assert "3 rows with tools, reasoning, system or other turns: palimpsest prepare says whether" in said
    assert "its tokenizer not here" in said and "with a chat template" not in said


def test_the_tiny_model_is_asked_itself_and_counted_in_bytes(init, refuse, here, monkeypatch):
    """It was said to have a chat template, and not to have it here; its tokens were guessed at three letters each."""
    monkeypatch.setenv("HOME", str(here.parent))
    turns = [{"role": "system", "content": "Be brief."}, *ROWS["messages"]["messages"]]
    write_rows(here / "a.jsonl", {"messages": turns}, count=3)
    said = init("model=tiny", "data=a.jsonl")
    assert "with a chat template" in said and "not here" not in said and "characters a token" not in said
    assert "the longest document has about 51 with the chat template" in said
    assert "the weights are random" in said
    tool = {"type": "function", "function": {"name": "weather", "description": "Look.", "parameters": {}}}
    write_rows(here.parent / "tools.jsonl", {**ROWS["messages"], "tools": [tool]}, count=3)
    (here / "a.jsonl").unlink()
    shutil.rmtree(here / "palimpsest")
    assert "line 1 and 2 more rows: tool schemas" in refuse(
        "init", "model=tiny", f"data={here.parent}/tools.jsonl"
    )


def test_a_system_turn_that_the_template_refuses_is_found_too(refuse, here, model):
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role.') }}{% endif %}"
        "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    turns = [{"role": "system", "content": "Be brief."}, *ROWS["messages"]["messages"]]
    write_rows(here.parent / "a.jsonl", {"messages": turns}, count=3)
    assert "No system role." in refuse("init", f"model={model}", f"data={here.parent}/a.jsonl")


def test_reasoning_that_the_template_leaves_out_can_be_settled_by_a_word(init, refuse, here, model):
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'].split('</think>')[-1] }}\n{% endfor %}"
    )
    thought = {"role": "assistant", "content": "Hello {0}.", "reasoning_content": "Greet back."}
    file = here.parent / "a.jsonl"
    write_rows(file, {"messages": [{"role": "user", "content": "Hi?"}, thought]}, count=3)
    words = [f"model={model}", f"data={file}"]
    said = refuse("init", *words)
    assert "Give reasoning=as_rendered (" in said and "or give chat_template=FILE, one that keeps it" in said
    assert "`reasoning` must be one of" in refuse("init", *words, "reasoning=none")
    init(*words, "reasoning=drop")
    tree = yaml.safe_load((here / "palimpsest/experiment/a.yaml").read_text())
    assert tree["data"]["sources"]["a"]["learn"] == {"reasoning": "drop"}


ENOUGH = ", so that the comparison with the base has an interval, which takes 5"


@pytest.mark.parametrize(
    ("count", "frac", "because"),
    [
        (3, 0.25, "about 1 of 3 documents, but an interval takes 5: give more documents"),
        (20, 0.25, "about 2 of 20 documents, but an interval takes 5: give more documents"),
        (60, 0.17, f"about 11 of 60 documents{ENOUGH}"),
        (700, 0.02, f"about 18 of 700 documents{ENOUGH}"),
    ],
)
def test_so_much_is_held_out_that_there_is_an_interval_where_there_can_be_one(
    init, here, model, count, frac, because
):
    write_rows(here / "a.jsonl", ROWS["text"], count)
    assert f"Held out: data.validation_frac={frac} ({because})." in init(f"model={model}", "data=a.jsonl")
    text = (here / "palimpsest/experiment/a.yaml").read_text()
    assert f"  validation_frac: {frac}   # share of documents held out: {because}\n" in text


def test_whether_it_fits_is_what_the_plan_says_of_the_gpu_that_is_there_or_named(init, here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write_rows(here / "a.jsonl", ROWS["text"])
    said = init("model=llama3_1_70b", "data=a.jsonl", "recipe=full_finetune")
    assert "Memory: does not fit a GPU of 80 GiB (assumed, since no GPU is known: set plan.gpu_gib)" in said
    assert "\n  recipe=qlora: peak " in said
    program = here.parent / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$1" in *memory*) echo 143771;; *) echo 9.0;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here.parent}:/bin:/usr/bin")
    assert "Memory: fits a GPU of 140.4 GiB with " in init("model=tiny", "data=a.jsonl", "name=b")


@pytest.mark.parametrize("verb", ["plan", "train", "prepare"])
def test_an_experiment_that_init_wrote_is_found_by_its_error(here, capsys, verb):
    """The first thing to type after `palimpsest init` is its name alone."""
    (here / "palimpsest/experiment").mkdir(parents=True)
    (here / "palimpsest/experiment/first.yaml").write_text("name: first\n")
    assert run_command([verb, "experiment=first"]) == 2
    assert capsys.readouterr().err.strip() == (
        "Error: `experiment=first` must be given with the folder that it lies in, but "
        f"{here}/palimpsest/experiment/first.yaml is looked for among what ships instead. Add "
        f"'hydra.searchpath=[file://{here}/palimpsest]'"
    )
    assert run_command([verb, "experiment=frist"]) == 2
    assert "Did you mean `first`?" in capsys.readouterr().err
