"""The naming rules hold for this tree, and the program that measures them can fail."""

import ast
from pathlib import Path

import pytest

from tests.architecture.naming import MEASURED_FOLDERS, bindings, broken_rules, is_participle
from tests.architecture.sizes import ROOT, sources


def test_this_tree_keeps_the_naming_rules() -> None:
    files = sources()
    assert {path.relative_to(ROOT).parts[0] for path in files} >= set(MEASURED_FOLDERS)
    assert broken_rules(files) == []


def module(root: Path, folder: str, source: str) -> Path:
    path = root / folder / "module.py"
    path.parent.mkdir()
    path.write_text(source)
    return path


def test_bare_participles_above_the_bound_are_reported(tmp_path: Path) -> None:
    path = module(tmp_path, "coordinator", "found = kept = rows = 1\n")
    assert broken_rules([path], tmp_path) == [
        "666.7 of 1,000 names are bare participles, at most 15; the commonest: found (1), kept (1)"
    ]


def test_bare_participles_of_tests_and_deployment_are_not_counted(tmp_path: Path) -> None:
    assert broken_rules([module(tmp_path, name, "found = 1\n") for name in ("tests", "deploy")], tmp_path) == []


@pytest.mark.parametrize("folder", ["worker_agent", "deploy", "tests"])
def test_a_module_docstring_that_begins_with_an_interrogative_is_reported(folder: str, tmp_path: Path) -> None:
    path = module(tmp_path, folder, '"""What a worker sends."""\n')
    assert broken_rules([path], tmp_path) == [
        f"{path}: the module docstring begins with an interrogative, not with a noun"
    ]


def test_every_kind_of_binding_is_counted() -> None:
    source = "class A:\n    def b(self, c, /, d, *, e):\n        self.f = g = h\nfor i in j: pass\n"
    assert sorted(bindings(ast.parse(source))) == ["A", "b", "c", "d", "e", "f", "g", "i", "self"]


@pytest.mark.parametrize("name", ["found", "_given", "sorted", "Frozen"])
def test_a_name_that_as_a_whole_is_a_participle_counts(name: str) -> None:
    assert is_participle(name)


@pytest.mark.parametrize("name", ["rows", "seed", "shared", "set", "sorted_rows", "red", "left", "__init__"])
def test_other_names_do_not_count(name: str) -> None:
    assert not is_participle(name)
