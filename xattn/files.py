"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xattn.errors import InputError

ELSEWHERE = "name another place with --out, --html, --png or --json"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if nothing was raised.

    An interrupted or failing writer leaves neither a half file nor the temporary one.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    path = path.resolve()  # a link stays a link; what it leads to is replaced
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path} cannot be written", got="something else than a file", remedy=ELSEWHERE
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        raise unwritable(path, error) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are private
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_writable(directory: Path) -> None:
    """Find out before hours of work whether a folder can be written; leaves nothing behind.

    Raises
    ------
    InputError
        If it cannot.
    """
    nearest = directory
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise unwritable(directory, error) from None


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the error to raise when `path` could not be written."""
    return InputError(
        f"{path} cannot be written",
        got=error.strerror or str(error),
        remedy=ELSEWHERE,
    )
