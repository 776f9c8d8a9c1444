"""Private data folders: created for one user of the machine, and rejected if other users have access."""

import os
import pwd
import shlex
import stat
from collections.abc import Iterable
from pathlib import Path

UMASK = 0o077
_OTHERS = 0o077


class NotPrivate(Exception):
    """A file or folder that other users of this machine can access. The message has the command to run."""


def keep_private() -> None:
    """Set the umask so that only this user can read and write new files of this process and its children."""
    os.umask(UMASK)


def own_folder(folder: Path, names: Iterable[str] = ()) -> None:
    """Create the folder if it is missing. Check it and the files `names` in it. Raises NotPrivate."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private([folder, *(folder / name for name in names)])


def check_private(paths: Iterable[Path]) -> None:
    """Raise NotPrivate for the first existing path that belongs to another user or is open to others."""
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if status.st_uid != os.geteuid():
            owner, user = _name(status.st_uid), _name(os.geteuid())
            fix = f"run this as {owner}, or give it away: chown -R {user} {shlex.quote(str(path))}"
            raise NotPrivate(f"{path} belongs to {owner}, not to {user}: {fix}")
        mode = stat.S_IMODE(status.st_mode)
        if mode & _OTHERS:
            fix = f"chmod -R go-rwx {shlex.quote(str(path))}"
            raise NotPrivate(f"{path} is open to other users of this machine (mode {mode:04o}); run: {fix}")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
