"""The last lines of a run on a terminal."""

from tests.helpers.run_files import write_run
from trainer.report.announce import announce


def test_the_end_of_a_run_says_what_changed_and_what_a_nat_is(tmp_path, capsys):
    announce(write_run(tmp_path / "run"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Held-out loss against the base: ") and " nats (" in said[0]
    assert said[1] == (
        "(Nats a token: natural logarithms of probability. 0.1 less, and the right token is about 10 % more likely.)"
    )
    assert said[-1].startswith("Report: ")
