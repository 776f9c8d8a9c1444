"""Files and folders of another user."""

import os
from pathlib import Path

_NOBODY = 65534


def make_foreign(path: Path) -> None:
    """Gives the path to another user; who may not do that puts a link to something of root's in its place."""
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
        return
    target = "/etc" if path.is_dir() else "/etc/passwd"
    path.rename(path.with_name(f"{path.name}-before"))
    path.symlink_to(target)
