"""`palimpsest plan` as a person meets it: numbers, the figure, exit codes, no torch, no wait."""

import json
import re
from xml.etree import ElementTree

import pytest

from tests.helpers.calls import MANY_CALLS, calls_without_torch
from tests.house.tree import ROOT
from trainer.cli import run_command
from trainer.errors import Exit

LLAMA = ["model=benchmark", f"model.path={ROOT / 'benchmarks/shapes/llama3_8b'}"]
NODE = [*LLAMA, "cluster.ranks_per_node=8", "plan.gpu_gib=80"]
OLMO = {"model_type": "olmo", "architectures": ["OlmoForCausalLM"], "hidden_size": 48, "vocab_size": 100}
OLMO |= {"pad_token_id": 0, "eos_token_id": 1}
OLMO |= {"intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.fixture
def plan(here, capsys):
    """Return a function that runs a plan and returns (exit code, what it printed)."""

    def run(*overrides):
        capsys.readouterr()
        code = run_command(["plan", *overrides])
        shown = capsys.readouterr()
        assert all("changes nothing: " in line for line in shown.err.splitlines()), (
            "words that come twice here"
        )
        return code, shown.out

    return run


def rows(text):
    """Return the cells of every printed line by its first cell, two spaces or more between cells."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()]
        if cells:
            found[cells[0]] = cells[1:]
    return found


def test_it_prints_parameters_memory_by_stage_and_lora(plan, here):
    code, text = plan(*NODE)
    shown = rows(text)
    assert code == 0
    assert shown["total"] == ["8,030,261,248"]
    # Several micro-steps, so bf16 at stage 0 is refused and has no column.
    assert "ZeRO-0 " not in text and "ZeRO-3 (yours)" in text
    assert len(shown["peak"]) == 3 and all(float(cell) > 10 for cell in shown["peak"])
    assert shown["16"][:4] == ["41,943,040", "0.52 %", "83.9 MB", "587.2 MB"]
    assert shown["full"][0] == "8,030,261,248"
    assert "Fits a GPU of 80 GiB with" in text
    assert "set cluster.ranks_per_node" not in text


def test_the_page_shows_what_the_command_prints(plan):
    """It showed a table of an older forecast."""
    command, block = (ROOT / "docs/plan.md").read_text(encoding="utf-8").split("```")[1:4:2]
    _, text = plan(*command.split()[2:])
    printed = {line.rstrip() for line in text.splitlines()}
    assert [line for line in block.splitlines() if line.rstrip() not in printed] == []


def test_stage_0_has_a_column_where_training_allows_it(plan):
    _, text = plan(*NODE, "train.global_batch_tokens=16384")
    assert "ZeRO-0 " in text and len(rows(text)["peak"]) == 4


@pytest.mark.parametrize("stage", [0, 1])
def test_both_tables_say_the_same_of_the_run(plan, stage):
    """That over r was headed ZeRO 0/1 and counted ZeRO-1, which shards the optimizer's state."""
    words = ["recipe=lora", f"zero=zero{stage}", "train.micro_batch_size=1", "data.seq_len=2048"]
    _, text = plan(*NODE, *words, "train.global_batch_tokens=16384")
    shown = rows(text)
    assert shown["r"][4:] == [f"ZeRO-{stage}", "ZeRO-3", f"QLoRA, ZeRO-{stage}"]
    assert shown["16"][4:6] == [shown["peak"][stage], shown["peak"][3]]


def test_the_table_of_time_says_which_rows_do_not_fit(plan):
    words = ["recipe=full_finetune", "plan.gpu=H100", "zero=zero3", "model.checkpoint_layers=-1"]
    code, text = plan(*NODE, *words, "plan.gpu_gib=26")
    last = [cells[-1] for cells in (rows(text)[str(number)] for number in (1, 2, 64))]
    assert code == 0 and last[0] == "does not fit" and float(last[2]) > float(last[1]) >= 0
    assert "Time, were there room in memory" in text and "cluster.num_nodes=2: peak" in text
    assert text.endswith("This is no error here: with plan.strict=true the exit code is 3.\n")
    code, text = plan(*NODE, *words, "plan.gpu_gib=26", "plan.strict=true")
    assert code == 3 and "This is no error" not in text
    code, text = plan(*NODE, *words)
    assert code == 0 and "does not fit" not in text.partition("\nTime\n")[2]


def test_the_figure_is_an_svg_and_only_written_where_it_is_asked_for(plan, here):
    plan(*NODE)
    assert [*here.iterdir()] == [], "a forecast writes nothing by itself"
    (here / "figures").mkdir()
    _, text = plan(*NODE, "plan.output=figures/mine.svg")
    figure = here / "figures" / "mine.svg"
    assert f"Figure: {figure}" in text
    root = ElementTree.parse(figure).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    assert "Trainable parameters of 8,030,261,248" in words and "QLoRA" in words
    # One line of trainable parameters, three of memory, seven points on each.
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 4
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4 * 7
    plan(*NODE, "plan.output=figures/mine.svg", "plan.gpu=H100", "zero.dtype=bf16")
    root = ElementTree.parse(figure).getroot()
    words = "".join(root.itertext())
    assert "Tokens a second on H100, forecast from 2 GPUs" in words and "GPUs" in words
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 4 + 2, "and as one node has"


def test_a_run_that_does_not_fit_is_told_what_makes_it_fit(plan):
    overrides = [*LLAMA, "cluster.ranks_per_node=4", "zero=zero1", "plan.gpu_gib=80"]
    code, text = plan(*overrides)
    assert code == 0
    assert "Does not fit a GPU of 80 GiB" in text
    advised = text.split("Smallest change that fits: ")[1].split(" (")[0].split()
    assert advised
    code, text = plan(*overrides, *advised, "plan.strict=true")
    assert code == 0 and "Fits a GPU of 80 GiB" in text


def advised(text):
    """Return the words and the GPUs of every way that is listed, in order."""
    lines = text.split("cheapest first:\n")[1].split("\n\n")[0].splitlines()
    return [line.strip().split(": peak ")[0].split() for line in lines]


def test_a_large_model_without_a_cluster_gets_the_cheapest_ways_first_with_figures(plan):
    """It was told 32 nodes of one GPU."""
    words = ["recipe=full_finetune", "model=llama3_1_70b", "plan.gpu_gib=80", "cluster.ranks_per_node=1"]
    _, text = plan(*words)
    assert "Does not fit a GPU of 80 GiB" in text and "Smallest change" not in text
    ways = advised(text)
    assert [way[0] for way in ways] == [
        "recipe=qlora",
        "zero=zero3_offload",
        "recipe=lora",
        "cluster.ranks_per_node=8",
    ]
    assert ways[2][1:] == ["cluster.ranks_per_node=4"] and ways[3][1:] == ["cluster.num_nodes=4"]
    assert " GiB of host memory on a node" in text and "; 4 GPUs, trains 0." in text
    assert text.count(" to spare") == 4


def test_what_choosing_replay_costs_is_told(plan):
    """Worked out: a tenth of the tokens, scored four times and once by the base: a half; its work is half with LoRA."""
    words = ["recipe=lora", "model=llama3_1_8b", "data=text", "data.sources.corpus.path=corpus.jsonl"]
    words += ["replay=general", "replay.ratio=0.1"]
    text = " ".join(plan(*words, "replay.choice=losing")[1].split())
    assert "over 50.0% of as many tokens as the run trains on, which is 25.0% more work." in text
    full = " ".join(plan("recipe=full_finetune", *words[1:], "replay.choice=losing")[1].split())
    assert "which is 16.7% more work." in full
    held = plan(*words, "replay.choice=losing", "replay.controller=hold", "evaluate.every_steps=9")[1]
    assert "over at most 250.0% of as many" in " ".join(held.split())
    assert "replay.choice" not in plan(*words)[1]


def of_answers(plan, data, objective, *words):
    source = {"preference": "pairs", "unpaired": "answers"}[data]
    own = [f"data={data}", f"data.sources.{source}.path=/data/rows.jsonl", f"objective={objective}"]
    sizes = ["plan.gpu=H100", "plan.gpu_gib=80", "cluster.ranks_per_node=1"]
    length = ["train.max_epochs=null", "train.max_steps=100"]
    code, text = plan("recipe=preference_lora", "model=llama3_1_8b", *own, *sizes, *length, *words)
    assert code == 0
    return " ".join(text.split())


def test_a_run_of_preferences_is_told_what_its_rows_are_and_what_is_asked_before_the_first_step(plan):
    dpo = of_answers(plan, "preference", "dpo")
    assert (
        "Rows are pairs, each a prompt with the chosen answer and, behind the same prompt, the rejected"
        in dpo
    )
    assert "How many tokens that saves is counted by palimpsest prepare." in dpo and "16 bytes a pair" in dpo
    apart = of_answers(plan, "preference", "dpo", "data.share_prompts=false")
    assert "Rows are pairs, each two documents" in apart and "shared" not in apart
    seconds = re.search(r"It takes about ([\d.]+) s for as many tokens as a step has, at most (\S+) for", dpo)
    step = re.search(r"A step on 1 x H100 takes about ([\d.]+) s", dpo)
    assert 0.2 < float(seconds[1]) / float(step[1]) < 0.5, (
        "a forward pass of what has no gradients of weights"
    )
    orpo = of_answers(plan, "preference", "orpo")
    assert "orpo has no reference: nothing is asked before the first step" in orpo and "It takes" not in orpo
    kto = of_answers(plan, "unpaired", "kto")
    assert "16 bytes a row" in kto and "KTO takes one more forward pass of each step, about " in kto
    zero = of_answers(plan, "unpaired", "apo_zero_unpaired", "plan.gpu=null")
    assert "8 bytes a row. How long that takes is not forecast." in zero and "KTO takes" not in zero
    assert "Rows are pairs" not in " ".join(
        plan("recipe=lora", "model=llama3_1_8b", "data.sources={}")[1].split()
    )


def test_tokens_that_sharing_saves_and_the_bytes_of_the_reference_are_those_of_prepared_pairs(
    plan, monkeypatch
):
    """60 pairs of 2,994 tokens and 1,556 shared: 49.9 and 4,550 / 60 = 75.8, 4,550 / 2,994 = 1.52; 16 x 60 = 960."""

    def counts(name, source, data):
        return (60, 2_994, 1_556) if data.share_prompts else None

    monkeypatch.setattr("trainer.command.plan_answers.shared_counts", counts)
    dpo = of_answers(plan, "preference", "dpo")
    assert "a pair has 49.9 tokens; as two documents it would have 75.8, 1.52 times as many." in dpo
    assert "16 bytes a pair, 960 in all for 60 pairs." in dpo
    monkeypatch.setattr("trainer.command.plan_answers.shared_counts", lambda *_: (1, 10, 2))
    assert "16 bytes a pair, 16 in all for 1 pair." in of_answers(plan, "preference", "dpo")
    assert "in all" not in of_answers(plan, "unpaired", "kto")


@pytest.mark.parametrize("place", range(4))
def test_every_way_that_is_listed_fits(plan, place):
    words = ["recipe=full_finetune", "model=llama3_1_70b", "plan.gpu_gib=80", "cluster.ranks_per_node=1"]
    way = advised(plan(*words)[1])[place]
    named = {word.partition("=")[0] for word in way}
    code, text = plan(
        *(word for word in words if word.partition("=")[0] not in named), *way, "plan.strict=true"
    )
    assert code == 0 and "Fits a GPU of 80 GiB" in text


def test_more_gpus_than_a_node_has_are_more_nodes(plan):
    words = ["recipe=continued_pretrain", "model=llama3_1_70b", "plan.gpu_gib=80", "cluster.ranks_per_node=8"]
    ways = advised(plan(*words)[1])
    assert ways[-1][:1] == ["cluster.num_nodes=4"]
    slurm = advised(plan(*words[:-1], "cluster=slurm", "cluster.ranks_per_node=4")[1])
    assert slurm[-1] == ["cluster.num_nodes=8"], "nodes of a cluster have the GPUs that it has"
    assert ["tune=lora", "optim.lr=1e-4"] in [way[:2] for way in ways], "the recipe's rate is for weights"


def test_a_run_that_barely_fits_is_warned_of_with_what_leaves_more(plan):
    """A forecast is exact to 3 %: of 82 GiB that is 2.5."""
    whole = [*NODE, "model.checkpoint_layers=0"]  # a choice would leave more
    _, text = plan(*whole)
    spare = float(text.split("GiB with ")[1].split(" ")[0])
    tight = f"{80 - spare + 0.5:.1f}"
    code, text = plan(*whole, f"plan.gpu_gib={tight}", "plan.strict=true")
    assert code == 0, "it fits"
    assert "with only 0.5 GiB to spare: less than 3 % of it, which the forecast may be off by." in text
    advised = text.split("Smallest change that leaves more: ")[1].split(" (")[0].split()
    _, text = plan(*whole, f"plan.gpu_gib={tight}", *advised)
    assert "with only" not in text and "Fits a GPU of" in text


def test_strict_refuses_what_does_not_fit_with_3(plan):
    assert plan(*NODE, "plan.strict=true")[0] == 0
    assert plan(*LLAMA, "plan.gpu_gib=80", "plan.strict=true")[0] == Exit.refused == 3


def test_what_was_assumed_without_a_gpu_is_said(plan, monkeypatch):
    monkeypatch.setenv("PATH", "")
    _, text = plan(*LLAMA)
    assert "one rank a node is counted" in text and "one of 80 GiB is assumed" in text
    assert "fit a GPU of 80 GiB (assumed, since no GPU is known: set plan.gpu_gib)" in text


def test_an_unknown_architecture_is_built_and_that_is_said(plan, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLMO))
    code, text = plan("model=benchmark", f"model.path={tmp_path}")
    assert code == 0
    assert "The architecture olmo is not counted from its config.json" in text


def test_it_needs_no_torch_and_is_little_work(here):
    """A second or two on the processor."""
    assert calls_without_torch(["plan", *NODE], here) < MANY_CALLS


def test_a_launchers_environment_does_not_start_ranks(plan, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("RANK", "0")
    assert plan(*NODE)[0] == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=tinny"], "Did you mean `tiny`?"),
        (["model=benchmark"], "`model.path`"),
        (
            ["model=benchmark", "model.path=/nowhere/model"],
            "`model.path` must be a model name or an existing",
        ),
        (
            ["model=benchmark", "model.path=nobody/nothing"],
            "'nobody/nothing' is neither: there is no such folder",
        ),
        (["plan.gpu_gib=0"], "`plan.gpu_gib` must be more than 0, but is 0.0 instead."),
        (["plan.gpu_gib=-80"], "`plan.gpu_gib` must be more than 0, but is -80.0 instead."),
        (["plan.gpu_gib=nan"], "`plan.gpu_gib` must be a finite number, but is nan instead."),
        (["plan.reserve_gib=-1"], "`plan.reserve_gib` must be 0 or more"),
        (
            ["plan.gpu=80"],
            "`plan.gpu` must be the name of a GPU, but is '80' instead. Set plan.gpu=H100; its memory is",
        ),
        (
            ["plan.gpu=H1000", "plan.gpu_gib=-4"],
            "`plan.gpu` must be a GPU that times are known of (H200, H100, A100), but is 'H1000' instead. Leave it out",
        ),
        (["plan.card=80"], "Unknown key `plan.card`."),
        (["zero.stage=4"], "`zero.stage` must be 0, 1, 2, 3 or null"),
        (["zero=zero0", "model=tiny"], "`zero.stage` must be 1 or more in bf16 with gradient accumulation"),
        (["train.global_batch_tokens=1000"], "`train.global_batch_tokens` must be a multiple"),
        (
            ["model=tiny", "tune=lora", "tune.r=65"],
            "`tune.r` must be at most the smaller side of every adapted",
        ),
        (
            ["model=tiny", "tune=lora", "tune.target=[q_proj,qq]"],
            "`tune.target` must name linear layers of the model",
        ),
        (["model=tiny", "optim.lr=-1"], "`optim.lr` must be more than 0, but is -1.0 instead."),
        (["model=tiny", "checkpoint.keep_last=-3"], "`checkpoint.keep_last` must be at least 1, but is -3"),
        (
            ["model=tiny", "train.router_bias_rate=0.001"],
            "`train.router_bias_rate` must be 0 for llama, which",
        ),
        (
            ["model=tiny", "data.seq_len=16384", "train.global_batch_tokens=16384"],
            "`data.seq_len` must be at most the model's context of 8192, but is 16384 instead.",
        ),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(refuse, monkeypatch, overrides, sentence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert sentence in refuse("plan", *overrides)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "that is no JSON"),
        ('{"model_type": "llama"}', "`hidden_size` of"),
        ('{"model_type": "no_such_kind"}', "is no_such_kind instead"),
        ("{}", "that names no model_type"),
    ],
)
def test_a_config_json_that_says_too_little_is_refused(refuse, tmp_path, text, sentence):
    (tmp_path / "config.json").write_text(text)
    assert sentence in refuse("plan", "model=benchmark", f"model.path={tmp_path}")


def test_a_figure_that_cannot_be_written_is_refused(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    assert "`plan.output` must be a file you can write" in refuse(
        "plan", "model=tiny", f"plan.output={tmp_path / 'file' / 'a.svg'}"
    )


def test_a_figure_replaces_no_other_file_and_makes_no_folder(refuse, tmp_path):
    for name, text in (("mine.jsonl", '{"text": "mine"}'), ("drawn.svg", "<svg><path d='M0 0'/></svg>")):
        (tmp_path / name).write_text(text)
        said = refuse("plan", "model=tiny", f"plan.output={tmp_path / name}")
        assert "`plan.output` must be a new file or an earlier figure, but" in said
        assert (tmp_path / name).read_text() == text
    said = refuse("plan", "model=tiny", f"plan.output={tmp_path}/typo/plan.svg")
    assert f"must be in a folder that is there, but {tmp_path}/typo is not." in said
    assert not (tmp_path / "typo").exists()


def test_an_adapter_is_planned_with_its_own_rank_and_targets(plan):
    def peak(*words):
        code, text = plan(*NODE, *words)
        assert code == 0
        return rows(text), text

    full, _ = peak()
    all_linear, text = peak("tune=lora", "tune.r=16")
    assert "LoRA on all linear layers" in text
    few, text = peak("tune=lora", "tune.r=16", "tune.target=[q_proj,v_proj]")
    assert "LoRA on q_proj, v_proj" in text
    # r (in + out): 16 (4096 + 4096) for q and 16 (4096 + 1024) for v, 32 layers.
    assert few["16"][0] == f"{32 * 16 * (8192 + 5120):,}"
    column = full["peak"].index(full["peak"][-1])
    assert float(few["peak"][column]) < float(all_linear["peak"][column]) < float(full["peak"][column])
    assert few["full"] == full["full"], "the row of full fine-tuning is not the adapter's"
    for words, count in (
        ("tune=freeze", "436,224,000"),
        ("tune=prefix", "1,310,720"),
        ("tune=ia3", "524,288"),
    ):
        found, text = peak(words)
        assert f"{words.replace('=', '.method=')} as configured trains {count} parameters" in text
        assert float(found["peak"][column]) < float(full["peak"][column])


def test_a_base_in_4_bits_is_planned_with_its_own_bytes(plan):
    def parameters(*words):
        code, text = plan(*NODE, *words, "train.global_batch_tokens=65536")
        assert code == 0
        return [float(cell) for cell in rows(text)["parameters"]], text

    lora, _ = parameters("tune=lora")
    packed, text = parameters("tune=qlora", "zero=zero1")
    assert "The base is in NF4: 5.31 GiB instead of 14.96 in bf16." in text
    # Stages 1 to 3. At stage 3 each of 8 ranks holds its share, and the constants whole.
    assert lora == [15.0, 15.0, 1.9] and packed == [5.4, 5.4, 0.8]
    assert rows(text)["16"][:2] == ["41,943,040", "0.52 %"]


def test_a_target_that_is_no_linear_layer_is_refused(here, capsys):
    assert run_command(["plan", *NODE, "tune=lora", "tune.target=[qq]"]) == 2
    assert "`tune.target` must name linear layers of the model (down_proj," in capsys.readouterr().err


def test_time_and_cost_are_told_for_a_gpu_that_is_named(plan):
    lora = ["zero=zero1", "tune=lora", "train.max_steps=1000", "plan.gpu=H200", "plan.price_per_gpu_hour=2"]
    code, text = plan(*LLAMA, *lora)
    said = " ".join(text.split())
    found = re.search(r"A step on 1 x H200 takes about ([\d.]+) s: .* ([\d,]+) tok/s a GPU\.", said)
    assert code == 0 and found is not None and 0.1 < float(found[1]) < 60
    hours = re.search(r"1,000 steps: ([\d.]+) hours, ([\d.]+) GPU-hours, ([\d.]+) at 2 each", said)
    assert hours is not None and float(hours[3]) == pytest.approx(2 * float(hours[2]), abs=0.02)
    assert "nodes GPUs s a step tok/s a GPU tok/s" in said and "worked out from datasheets" in said
    # 41.9 million parameters of 12 bytes, at 38.9 and at 1 GB a second.
    assert (
        "A save is 0.503 GB: steps wait about 0.013 s for its copy, and the disk takes 0.503 s at 1 GB/s"
        in said
    )
    _, text = plan(*LLAMA, *lora, "checkpoint.background=false", "cluster.write_gb_per_s=2")
    said = " ".join(text.split())
    assert "A save is 0.503 GB, and steps wait until it is on disk: 0.252 s at 2 GB/s a node" in said
    _, text = plan(*LLAMA, *lora, "checkpoint.enabled=false")
    assert "Nothing is saved: checkpoint.enabled=false." in text


def test_the_fastest_way_is_told_and_fits(plan):
    full = [
        "zero=zero3",
        "plan.gpu=H200",
        "plan.gpu_gib=140",
        "cluster.ranks_per_node=8",
        "cluster.num_nodes=2",
    ]
    _, text = plan(*LLAMA, *full)
    said = " ".join(text.split())
    found = re.search(
        r"Fastest on these GPUs by this forecast: (.+): ([\d.]+) s a step, ([\d.]+) times as fast", said
    )
    own = re.search(r"takes about ([\d.]+) s", said)
    assert found is not None and own is not None
    assert float(own[1]) / float(found[2]) == pytest.approx(float(found[3]), rel=0.02)
    _, text = plan(*LLAMA, *full, *found[1].split())
    said = " ".join(text.split())
    assert f"takes about {found[2]} s" in said and "Fits a GPU of 140 GiB" in said
    assert "No other ZeRO stage, recomputation or micro-batch is forecast to be faster on these GPUs." in said
    _, text = plan(*LLAMA, *full, "plan.gpu_gib=16")
    assert "No ZeRO stage, recomputation or micro-batch fits these GPUs with room to spare." in " ".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("plan.gpu=null", "no GPU is known: set plan.gpu (H200, H100, A100)"),
        ("zero.dtype=fp32", "not forecast for float32"),
    ],
)
def test_why_time_is_not_forecast_is_said(plan, word, why):
    _, text = plan(*LLAMA, "plan.gpu=H200", word)
    said = " ".join(text.split())
    assert why in said and "A step on" not in said


@pytest.mark.parametrize("word", ["plan.gpu=''", "plan.network_gbit=0", "plan.price_per_gpu_hour=-1"])
def test_a_wrong_rate_or_price_is_refused(here, capsys, word):
    assert run_command(["plan", *LLAMA, word]) == Exit.mendable
    assert f"`{word.split('=')[0]}` must be " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_value_of_a_wrong_type_hides_no_broken_rule(refuse, command):
    said = refuse(command, "model=tiny", "optim.lr=fast", "checkpoint.keep_last=-3", "data.seq_len=x")
    for sentence in (
        "`optim.lr` must be a number, but is 'fast' instead.",
        "`data.seq_len` must be a whole number, but is 'x' instead.",
        "`checkpoint.keep_last` must be at least 1, but is -3 instead.",
    ):
        assert sentence in said
    assert "global_batch_tokens" not in said, "what follows from a word that was left out is not told"


def test_a_plan_without_data_or_length_is_told_of_nothing_that_is_open(plan):
    assert plan("model=tiny", "cluster.ranks_per_node=1")[0] == 0


def test_that_lora_leaves_out_the_experts_of_a_mixture_is_said(plan):
    """Nineteen parts of twenty of this model were left out without a word."""
    mixture = ["model=qwen3_30b_a3b", "tune=lora", "cluster.ranks_per_node=1"]
    told = "LoRA on all linear layers, without the experts, 95 % of the parameters (tune.target=[all_linear,experts]"
    assert told in " ".join(plan(*mixture)[1].split())
    assert (
        "experts" not in plan(*mixture, "tune.target=[q_proj]")[1].split("LoRA on")[1].split("peak memory")[0]
    )


def test_weights_that_are_packed_and_would_be_rounded_twice_are_refused(refuse, tmp_path):
    shape = json.loads((ROOT / "benchmarks/shapes/llama3_8b/config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(shape | {"quantization_config": {"quant_method": "fp8"}})
    )
    said = refuse("plan", "tune=qlora", "optim.lr=1e-4", f"model.path={tmp_path}")
    assert (
        f"`tune.quantise` must be none for {tmp_path}, whose weights are in fp8, but is nf4 instead" in said
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"quantization_config": "fp8"},
            "whose quantization_config is a mapping, but that of {} is 'fp8' instead",
        ),
        (
            {"num_experts_per_tok": 129},
            "at most the 128 experts of a layer, but {} has num_experts_per_tok=129",
        ),
    ],
)
def test_a_config_json_that_cannot_be_meant_is_refused_with_its_key(refuse, tmp_path, changes, sentence):
    """The first was a traceback, the second a library's words about an index."""
    shape = json.loads((ROOT / "benchmarks/shapes/qwen3_30b_a3b_6_layers/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(shape | changes))
    said = refuse("plan", f"model.path={tmp_path}", "cluster.ranks_per_node=1")
    assert sentence.format(tmp_path) in said and "ame another model.path" in said
