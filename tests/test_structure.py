"""How the code is laid out: sizes of files and folders, the direction of imports, no circles."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import datamodules
import foundation

ROOT = Path(__file__).parents[1]
PACKAGES = ("datamodules", "foundation", "heads")
FOLDERS = (*PACKAGES, "tests")
LINES, FILES = 320, 12


def modules() -> dict[str, Path]:
    """The modules of the packages by name; a package's name stands for its `__init__.py`."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def statements(tree: ast.AST) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import of a module, those in functions too, and whether it is for types alone, which never runs."""

    def walk(node: ast.AST, typing: bool) -> Iterator[tuple[ast.stmt, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, typing
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), True)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), typing)
            else:
                yield from walk(child, typing)

    yield from walk(tree, False)


def imports(text: str, known: set[str]) -> set[tuple[str, bool]]:
    """The modules of ours that a text imports, and whether for types alone."""
    found = set()
    for node, typing in statements(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.ImportFrom)
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in names]
        found |= {(name, typing) for name in names if name.split(".")[0] in PACKAGES}
    return found


def graph() -> dict[str, set[tuple[str, bool]]]:
    """What every module imports. Tables of public names, which import on first use, are left out."""
    found = modules()
    tables = {package for package in PACKAGES if "lazy" in found[package].read_text()}
    return {name: set() if name in tables else imports(file.read_text(), set(found)) for name, file in found.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for target in sorted(edges.get(name, ())):
            if found := visit(target, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := visit(name, []))), [])


def allowed(name: str, target: str) -> bool:
    """Whether a module of one part of the project may import one of another."""
    package, other = name.split(".")[0], target.split(".")[0]
    ground = "datamodules.channel"
    if f"{name}.".startswith(f"{ground}."):
        return f"{target}.".startswith((f"{ground}.", "datamodules.errors.", "datamodules.sites.paths."))
    if package == other or f"{target}.".startswith(f"{ground}."):
        return True
    return package == "foundation"


def code_files() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def test_no_file_is_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in code_files()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_no_folder_is_full() -> None:
    # an __init__.py holds a docstring, or the table of a package's names
    counts: dict[str, int] = {}
    for file in code_files():
        if file.name != "__init__.py":
            folder = str(file.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    # data, studies and what papers fix; encoders and tasks have one folder each, where the Makefile finds them by name
    for kind in ("data", "paper", "studies"):
        for file in (ROOT / "experiments" / kind).rglob("*.yaml"):
            folder = str(file.parent.relative_to(ROOT))
            counts[folder] = counts.get(folder, 0) + 1
    assert {folder: count for folder, count in counts.items() if count > FILES} == {}


def test_no_two_studies_have_one_name() -> None:
    names = [file.stem for file in (ROOT / "experiments" / "studies").rglob("*.yaml")]
    assert sorted(names) == sorted(set(names)), "make study finds them by name"


def test_tests_mirror_the_code() -> None:
    for package in PACKAGES:
        folders = {file.parent for file in (ROOT / "tests" / package).rglob("test_*.py")}
        strangers = {str(f.relative_to(ROOT)) for f in folders if not (ROOT / f.relative_to(ROOT / "tests")).is_dir()}
        assert strangers == set()


def test_imports_make_no_circle() -> None:
    """Imports in functions count; those for types alone do not, as they never run."""
    edges = {name: {target for target, typing in targets if not typing} for name, targets in graph().items()}
    assert circle(edges) == []


def test_imports_go_one_way() -> None:
    wrong = [f"{name} -> {t}" for name, targets in graph().items() for t, _ in sorted(targets) if not allowed(name, t)]
    assert wrong == []


def test_models_see_batches_not_the_module_that_makes_them() -> None:
    """What wires data, model and head is named in YAML; beside the command line, only benchmarks make data.

    Rehearsal is such a module itself.
    """
    made = re.compile(r"^ *from datamodules(\.(module|sources)\b|.* import .*\bChannelDataModule\b)", re.MULTILINE)
    wired = {
        name for name, file in modules().items() if not name.startswith("datamodules") and made.search(file.read_text())
    }
    benches = {
        f"foundation.evaluation.{name}"
        for name in ("bench", "calibration_bench", "csi4cast", "gpu_bench", "tracing_bench")
    }
    assert wired <= {"foundation.cli", "foundation.adaptation.rehearsal", *benches}


@pytest.mark.parametrize(
    ("name", "target", "may"),
    [
        ("datamodules.module", "foundation.task", False),
        ("datamodules.module", "heads", False),
        ("datamodules.channel.codebook", "datamodules.sites.site", False),
        ("datamodules.channel.codebook", "datamodules.sites.paths", True),
        ("datamodules.channel.motion", "datamodules.errors", True),
        ("heads.beam", "datamodules.channel.codebook", True),
        ("heads.beam", "datamodules.sites.site", False),
        ("heads.beam", "datamodules", False),
        ("heads.beam", "foundation.encoder", False),
        ("foundation.task", "heads.base", True),
        ("foundation.task", "datamodules.errors", True),
    ],
)
def test_the_rule_tells_right_from_wrong(name: str, target: str, may: bool) -> None:
    assert allowed(name, target) is may


def test_the_reader_of_imports_finds_them_all() -> None:
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from heads.base import Head
else:
    import heads.beam
def late():
    from datamodules.channel import motion, unknown
"""
    assert imports(text, {"datamodules.channel.motion"}) == {
        ("heads.base", True), ("heads.beam", False),
        ("datamodules.channel.motion", False), ("datamodules.channel", False),
    }  # fmt: skip
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_public_names_are_found_on_first_use() -> None:
    code = "import sys, datamodules, foundation; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    for package in (datamodules, foundation):
        assert all(getattr(package, name).__name__ == name for name in package.__all__)
