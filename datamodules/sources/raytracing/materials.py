"""Radio materials of a scene, as Blender writes their names."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from difflib import get_close_matches
from pathlib import Path

from datamodules.errors import InputError


def with_materials(file: Path) -> str:
    """Return a scene's XML, with the kind of those ITU materials whose names Blender has numbered, `itu_wood.002`.

    Raises:
        InputError: ITU-R P.2040 has no material of a name; close ones are named.
    """
    from sionna.rt.radio_materials.itu import ITU_MATERIALS_PROPERTIES

    root = ElementTree.fromstring(file.read_text())
    for material in root.findall("./bsdf") + root.findall(".//shape/bsdf"):
        named = re.fullmatch(r"(?:mat-)?itu[_-](.*?)(?:\.\d{3})?", material.get("id", ""))
        if named is None or material.find("string[@name='type']") is not None:
            continue
        if named[1] not in ITU_MATERIALS_PROPERTIES:
            known = get_close_matches(named[1], ITU_MATERIALS_PROPERTIES) or sorted(ITU_MATERIALS_PROPERTIES)
            raise InputError(f"scene {file} has the unknown material {material.get('id')!r}: try {', '.join(known)}")
        material.append(ElementTree.Element("string", {"name": "type", "value": named[1]}))
    return ElementTree.tostring(root, encoding="unicode")
