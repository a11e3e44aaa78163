"""Paths as people give them: shown on one line, checked before anything is opened."""

from __future__ import annotations

import stat
from pathlib import Path

LONGEST = 400
HEAD_BYTES = 512


def shown(text: object) -> str:
    """``text`` on one printable line for an error: other characters escaped, the middle of a long one cut."""
    line = str(text)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]}...{line[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too for what is no path, or a name that is too long."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_head(path: Path) -> bytes:
    """The first bytes of a regular file, at most 512. What is not a regular file is never opened.

    Raises:
        FileNotFoundError: nothing there.
        OSError: a folder, a pipe, a device, a loop of links, or not readable; one sentence says which.
        ValueError: no path at all, or a name that is not valid UTF-8 (the readers below need it).
    """
    try:
        str(path).encode()
        mode = path.stat().st_mode
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{shown(path)} has a name that is not valid UTF-8; rename the file"
        ) from error
    except ValueError as error:
        raise ValueError(f"{shown(path)} is not a path; choose a file") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(_missing(path)) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{shown(path)} is a folder; choose a file in it")
    if not stat.S_ISREG(mode):
        raise OSError(f"{shown(path)} is a pipe, socket or device, not a file; choose a file")
    try:
        with path.open("rb") as handle:
            return handle.read(HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f"{shown(path)} is a link to a file that does not exist; download the file"
    return f"{shown(path)} does not exist; check the name or download the file"


def _unreadable(path: Path, error: OSError) -> OSError:
    """The same kind of error in one sentence."""
    reason = (error.strerror or type(error).__name__).lower()
    return type(error)(
        f"{shown(path)} cannot be read ({reason}); check the file and its permissions"
    )
