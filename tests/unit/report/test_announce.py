"""The last lines of a run on a terminal."""

import json

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


def test_the_end_of_a_run_says_why_a_set_has_no_interval(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run")
    file = run_dir / "forgetting.json"
    found = json.loads(file.read_text())
    found["sets"][0] |= {"num_documents": 2, "change_low": None, "change_high": None}
    file.write_text(json.dumps(found))
    announce(run_dir)
    why = f"No interval for {found['sets'][0]['name']} (2 documents)"
    for said in (capsys.readouterr().out, (run_dir / "report.html").read_text()):
        assert why in said and ": it takes 5 held-out documents. Raise data.validation_frac" in said
