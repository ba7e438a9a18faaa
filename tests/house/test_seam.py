"""The seam for objectives is open: one more is a folder, a YAML file, a member of an enum and a case in the builder."""

from tests.house.tree import ROOT, python_files

OWN = {"trainer/objective/weighted/__init__.py", "trainer/objective/weighted/weighted_loss.py"}
SHARED = {"trainer/objective/build.py", "trainer/config/objective.py"}


def test_an_objective_is_named_in_its_folder_the_builder_and_its_section_alone():
    naming = {
        str(path)
        for path in python_files("trainer", "launch")
        if any(
            word in (ROOT / path).read_text(encoding="utf-8")
            for word in ("WeightedObjective", "objective.weighted", "ObjectiveKind.weighted")
        )
    }
    assert naming <= OWN | SHARED and (ROOT / "conf/objective/weighted.yaml").is_file()
    assert (OWN - {"trainer/objective/weighted/__init__.py"}) | SHARED <= naming


def test_what_is_above_and_below_an_objective_names_none():
    for path in python_files(
        "trainer/run", "trainer/metrics", "trainer/engine", "trainer/mix", "trainer/data"
    ):
        if str(path) in ("trainer/run/recovery.py",):  # trains on replay alone, whatever the run's objective
            continue
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "CausalLMObjective" not in text and "WeightedObjective" not in text, path
