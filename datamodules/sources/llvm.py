"""The LLVM library with which Dr.Jit, and so Sionna, compiles on a CPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from datamodules.errors import InputError

#: releases of LLVM with which Dr.Jit aborts the process when a scene is loaded
ABORTING = (15, 16)


def use_llvm() -> None:
    """Point Dr.Jit at the LLVM library of `karellen-llvm-core`, before its first import.

    Dr.Jit would otherwise use that of the system, which may be one that aborts the process, see `ABORTING`.
    Does nothing if `DRJIT_LIBLLVM_PATH` is set, with a CUDA GPU, which does not need LLVM, and outside Linux.

    Raises:
        InputError: The library is not installed.
    """
    if "DRJIT_LIBLLVM_PATH" in os.environ or platform.system() != "Linux" or torch.cuda.is_available():
        return
    try:
        listed = importlib.metadata.files("karellen-llvm-core") or []
    except importlib.metadata.PackageNotFoundError:
        listed = []
    libraries = {Path(str(file.locate())).resolve() for file in listed if file.name.startswith("libLLVM.so")}
    found = sorted(library for library in libraries if library.is_file())
    if not found:
        raise InputError("ray tracing on a CPU needs LLVM: pip install karellen-llvm-core, or set DRJIT_LIBLLVM_PATH")
    os.environ["DRJIT_LIBLLVM_PATH"] = str(found[-1])


def check_llvm() -> None:
    """Refuse the LLVM that Dr.Jit has loaded if it would abort the process, as when a program imported Sionna first.

    Raises:
        InputError: It is LLVM 15 or 16.
    """
    if torch.cuda.is_available():
        return
    import drjit

    release = drjit.detail.llvm_version()[0]
    if release in ABORTING:
        raise InputError(
            f"Sionna was imported with LLVM {release} of this system, by which ray tracing aborts: call "
            "`datamodules.sources.llvm.use_llvm()` before its import, or set DRJIT_LIBLLVM_PATH to another release"
        )
