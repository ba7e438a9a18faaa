"""`palimpsest train cluster=hostfile`: what is wrong with the file is said before anything starts."""

import pytest
import yaml

from trainer.cli import run_command

ARGUMENTS = [
    "train",
    "model=tiny",
    "data=text",
    "data.sources.corpus.path=corpus.txt",
    "train.max_steps=1",
    "cluster=hostfile",
]


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        (None, [], "`cluster.hostfile` must be a file of HOST slots=N lines, but"),
        ("node1 slots=two\n", [], "hosts:1 is 'node1 slots=two' instead"),
        ("n1 slots=8\nn2 slots=4\n", [], "must give every host the same number of slots"),
        (
            "n1 slots=3\nn2 slots=3\n",
            [],
            "must be a multiple of ranks x micro batch x seq_len = 6 x 1 x 2048 = 12288",
        ),
        ("n1 slots=1\n", ["cluster.launcher=srun"], "`cluster.launcher` must be deepspeed with a hostfile"),
        (
            "n1 slots=1\n",
            ["cluster.deepspeed_runner=mpich"],
            "`cluster.deepspeed_runner` must be one of pdsh",
        ),
    ],
)
def test_bad_hostfiles_are_a_sentence(refuse, tmp_path, text, overrides, sentence):
    hosts = tmp_path / "hosts"
    if text is not None:
        hosts.write_text(text)
    assert sentence in refuse(*ARGUMENTS, f"cluster.hostfile={hosts}", *overrides)


def test_a_file_that_is_missing_is_told_with_what_else_is_wrong(refuse):
    shown = refuse(*ARGUMENTS, "cluster.hostfile=nowhere", "cluster.launcher=srun")
    assert "here/nowhere cannot be read" in shown
    assert "`cluster.launcher` must be deepspeed with a hostfile, but is 'srun' instead." in shown


def test_nobody_who_asks_for_a_hostfile_trains_on_this_machine_alone(refuse):
    assert "`cluster.hostfile` must be given with cluster=hostfile, but is null instead." in refuse(
        *ARGUMENTS
    )


def test_a_number_of_ranks_is_named_where_it_is_what_is_wrong_beside_nodes_too(refuse):
    ranks = "`cluster.ranks_per_node` must be at least 0, but is -1 instead. Set cluster.ranks_per_node=1."
    words = [*ARGUMENTS, "cluster=local", "cluster.ranks_per_node=-1"]
    alone = refuse(*words)
    assert ranks in alone and "cluster.num_nodes" not in alone
    both = refuse(*words, "cluster.num_nodes=2")
    assert ranks in both and "`cluster.num_nodes` must be 1 for `palimpsest train`, but is 2" in both


def test_several_nodes_without_a_hostfile_are_told_where_to_go(refuse):
    shown = refuse(*ARGUMENTS, "cluster=local", "cluster.num_nodes=2")
    assert "`cluster.num_nodes` must be 1 for `palimpsest train`" in shown and "palimpsest submit" in shown


def test_a_dry_run_shows_the_hosts_and_what_would_be_started_and_changes_nothing(here, tmp_path, capsys):
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=4\nnode2 slots=4\n")
    words = [*ARGUMENTS, f"cluster.hostfile={hosts}", f"run_dir={tmp_path}/run"]
    assert run_command([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"# 8 ranks on 2 hosts of {hosts}: node1 4, node2 4.\n" in said
    assert (
        f"--module trainer train --config {tmp_path}/run/config.yaml\n" in said and "trainer doctor" in said
    )
    assert yaml.safe_load(said)["cluster"]["hostfile"] == str(hosts), "it is the configuration still"
    assert not (tmp_path / "run").exists()
    assert run_command([*words, "--cfg"]) == 0 and "# 8 ranks" not in capsys.readouterr().out
    hosts.write_text("node1\n")
    assert run_command([*words, "--dry-run"]) == 2
