"""What is proved is said before, how far it is while, and between two passes it can be given up."""

import pytest

from trainer.evaluate.proofs.course import Course, Proof

PROOFS = [Proof("that one is so", 100), Proof("that two is so", 300), Proof("that three is so", 100)]


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_proofs_are_listed_first_and_slow_ones_tell_which_it_is_and_what_is_left():
    said, clock = [], Clock()
    course = Course(PROOFS, lambda: None, said.append, clock)
    assert said == [
        "Proving the loaded model before it is used: that one is so, that two is so and that three is so."
    ]
    before_pass = course.begin()
    before_pass(100)
    clock.now_s = 60.0
    before_pass = course.begin()
    before_pass(150)
    assert said[1:] == ["Proof 2 of 3, that two is so: 1m00s so far, about 4m00s left."]
    clock.now_s = 61.0
    before_pass(150)
    assert len(said) == 2, "one line in a while"


def test_a_proof_that_needed_less_or_more_than_foreseen_does_not_move_the_next():
    said, clock = [], Clock()
    course = Course(PROOFS, lambda: None, said.append, clock)
    course.begin()(1000)
    clock.now_s = 60.0
    course.begin()(1)
    assert said[1] == "Proof 2 of 3, that two is so: 1m00s so far, about 4m00s left."


def test_it_is_given_up_before_a_pass():
    asked = []

    def heed():
        asked.append(1)
        if len(asked) == 2:
            raise InterruptedError

    before_pass = Course(PROOFS, heed, lambda line: None).begin()
    before_pass(50)
    with pytest.raises(InterruptedError):
        before_pass(50)
