"""A town small enough to trace in a blink, for tests of many areas."""

from pathlib import Path

from tests.raytracing import write_scene

#: side of the town [m]
SIDE = 220.0


def write_town(folder: Path, houses: int = 4, width: float = 30.0, street: float = 22.0, name: str = "town") -> Path:
    """Write a square of houses of 12 to 27 m, in rows, on flat ground."""
    folder = folder / name
    folder.mkdir()
    pitch, boxes = width + street, {}
    first = -(houses * pitch - street) / 2
    for row in range(houses):
        for column in range(houses):
            x, y = first + column * pitch, first + row * pitch
            boxes[f"house_{row}_{column}"] = (x, y, x + width, y + width, -1.0, 12.0 + row + 4 * column)
    file = write_scene(folder, boxes, half=SIDE / 2)
    return file.rename(folder / f"{name}.xml")
