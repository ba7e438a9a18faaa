"""The checkpoint writer that stands in for DeepSpeed's during a save."""

import hashlib

from trainer.engine.writer import CheckedWriter, seal


class Inner:
    """Writes text files; refuses one name, as a full disk would."""

    name = "inner"

    def save(self, state_dict, path):
        if path.endswith("full"):
            raise OSError(28, "No space left on device")
        with open(path, "w") as file:
            file.write(state_dict)


def test_every_file_is_written_and_digested(tmp_path):
    writer = CheckedWriter(Inner())
    for name in ("a", "b"):
        writer.save(name * 5, str(tmp_path / name))
    assert writer.error is None
    assert [(f.path.name, f.num_bytes) for f in writer.files] == [("a", 5), ("b", 5)]
    assert writer.files[0].sha256 == hashlib.sha256(b"aaaaa").hexdigest()
    assert seal(tmp_path / "b") == writer.files[1]


def test_the_first_error_is_kept_and_nothing_is_thrown_into_a_collective(tmp_path):
    writer = CheckedWriter(Inner())
    writer.save("x", str(tmp_path / "full"))
    writer.save("y", str(tmp_path / "later"))
    assert isinstance(writer.error, OSError) and "No space left" in str(writer.error)
    assert writer.files == [] and not (tmp_path / "later").exists()


def test_everything_else_is_left_to_the_inner_writer():
    assert CheckedWriter(Inner()).name == "inner"
