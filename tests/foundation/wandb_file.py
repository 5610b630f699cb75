"""Reads what an offline run of Weights & Biases has written: records in the log format of LevelDB."""

import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4


def records(run: Path) -> list[Any]:
    """The records that the run in a folder has left, in order; its last words are written after it has ended."""
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 30
    while True:
        found = _records(file)
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < until, f"{file} has no end"
        time.sleep(0.05)


def _records(file: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    assert content[:4] in (b":W&B", b"")
    place, part, found = _HEADER, b"", []
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left  # a header is not cut in two
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, place)
        place += _HEADER
        data = content[place : place + length]
        if len(data) < length:
            break  # still being written
        assert checksum == zlib.crc32(bytes([kind]) + data), "damaged"
        place, part = place + length, part + data
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def items(records: list[Any], kind: str) -> dict[str, Any]:
    """What the records `history`, `summary` or `config` say, the last word on each key; inner keys by a slash."""
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == kind:
            message = getattr(record, kind)
            for item in message.item if kind == "history" else message.update:
                found |= _flat(item.key or "/".join(item.nested_key), json.loads(item.value_json))
    return found


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: each for inner, part in value.items() for name, each in _flat(f"{key}/{inner}", part).items()}
