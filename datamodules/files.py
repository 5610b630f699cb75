"""Files and folders that are written whole or not at all, and checksums of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Context that yields a temporary path beside a file or folder, and gives it the name of the target at its end.

    A reader of the target, or a kill, finds the old content or the new. After an error only the old content is left.
    """
    # two processes that write the target at once have one each
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write text to a file by `replacing`."""
    with replacing(file) as temporary:
        temporary.write_text(text)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
