"""The choice of `make test-fast`: the tests of changed files."""

from pathlib import Path

import pytest

from tests.changed import paths_for


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("coordinator/web/test_etags.py", "coordinator/web/test_waits.py", "coordinator/test_app.py"):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "tests"),
    [
        ([], []),
        (["README.md", "alembic/env.py"], []),
        (["coordinator/web/etags.py"], ["tests/coordinator/web/test_etags.py"]),
        (
            ["coordinator/web/routes.py"],
            ["tests/coordinator/web/test_etags.py", "tests/coordinator/web/test_waits.py"],
        ),
        (["coordinator/auth/principals.py"], ["tests/coordinator/test_app.py"]),
        (["tests/coordinator/test_app.py", "tests/coordinator/test_gone.py"], ["tests/coordinator/test_app.py"]),
    ],
)
def test_a_change_has_the_tests_that_mirror_it(root: Path, changed: list[str], tests: list[str]) -> None:
    assert paths_for(changed, root) == ["tests/architecture", *tests]
