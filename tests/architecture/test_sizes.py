"""The size rules hold for this tree, and the program that measures them can fail."""

from pathlib import Path

from tests.architecture.sizes import broken_rules, sources


def test_every_file_and_function_is_within_its_bound() -> None:
    files = sources()
    assert len(files) > 20
    assert broken_rules(files) == []


def test_a_long_file_a_long_function_and_a_vague_name_are_reported(tmp_path: Path) -> None:
    vague = tmp_path / "utils.py"
    vague.write_text("def f() -> None:\n" + "    pass\n" * 301)
    assert [line.split(": ", 1)[1] for line in broken_rules([vague])] == [
        "302 lines, at most 300",
        "a file is named for what it holds, not 'utils'",
        "f has 302 lines, at most 60",
    ]
