"""Files and folders that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from av.error import FFmpegError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_writable(path: str | Path) -> None:
    """Raise OSError, saying why, unless a file could be written at ``path`` now; leaves no trace."""
    reserve(Path(path)).unlink()


def check_folder_writable(path: str | Path) -> None:
    """The same for a folder, which must not exist yet or be empty."""
    reserve_folder(Path(path)).rmdir()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path`` if the block succeeds and vanishes if it does not.

    Raises OSError in plain words, for a disk that became full within the block too.
    """
    hidden = reserve(path)
    try:
        yield hidden
        os.replace(hidden, path)
    except OSError as error:
        if error.errno in _FULL:  # what else the block may raise is not of this file
            raise cannot_write(path, error) from error
        raise
    finally:
        remove(hidden)


def cannot_write(path: Path, error: OSError | FFmpegError) -> OSError:
    """What to raise for an ``error`` while ``path`` was written: says why and the way out."""
    way_out = "make room there" if error.errno in _FULL else "use another place or format"
    return OSError(f"cannot write {path} ({error.strerror or error}); {way_out}")


def reserve(path: Path) -> Path:
    """Make an empty file beside ``path`` under a hidden name; raises OSError in plain words."""
    hidden = _hidden(path)
    with _plain_words(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        hidden.touch(exist_ok=False)
    return hidden


def reserve_folder(path: Path) -> Path:
    """Make an empty folder beside ``path`` under a hidden name; raises OSError in plain words."""
    hidden = _hidden(path)
    with _plain_words(path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(errno.EEXIST, "it exists and is not an empty folder")
        hidden.mkdir()
    return hidden


def place_folder(hidden: Path, path: Path) -> None:
    """Give a folder of :func:`reserve_folder` its name; raises OSError if that was taken meanwhile."""
    with _plain_words(path):
        with suppress(FileNotFoundError):
            path.rmdir()
        hidden.rename(path)


def remove(hidden: Path) -> None:
    """Remove what was reserved, if it is still there."""
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        with suppress(FileNotFoundError):
            hidden.unlink()


def partial_name(path: Path) -> Path:
    """The name of the finished part of ``path``: ``clip_partial.mp4``, numbered where that exists."""
    stem = f"{path.stem.rstrip('_')}_partial"
    for number in count(2):
        named = path.with_name(f"{stem}{path.suffix}")
        if not named.exists():
            return named
        stem = f"{path.stem.rstrip('_')}_partial_{number}"
    raise AssertionError


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


@contextmanager
def _plain_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)(f"the folder {path.parent} does not exist; create it first") from error
    except PermissionError as error:
        raise PermissionError(
            f"no permission to write in {path.parent}; choose another folder"
        ) from error
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; choose another place") from error
