"""Parallel construction of sites in several processes, on one machine or on a Ray cluster.

One task is one recipe. `base.make` locks it and writes its sites atomically, so that tasks may be interrupted,
repeated, or run beside other programs; existing sites are not made again.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import ModuleType

import torch

from datamodules.errors import InputError, remedied
from datamodules.sources.base import Recipe, Source, make

#: number of tasks submitted to a Ray cluster at a time; pending tasks let it scale up
_AHEAD = 1000
_DIED = "its process died, killed or out of memory: run it again, with fewer workers if that repeats"

#: recipe number, and error message
Outcome = tuple[int, str | None]


def build(sources: Source | Sequence[Source], workers: int | None = None, address: str | None = None) -> dict[str, str]:
    """Make all missing sites of one or more sources, with one progress bar.

    A recipe that fails does not stop the others. A further call continues after a failure or an interruption.

    Args:
        sources: The sources, pickled for the workers, which list the recipes.
        workers: Number of processes on this machine, among which cores are divided; by default one for each core
            available. A script that defines a source needs an `if __name__ == "__main__":` guard.
        address: Address of a Ray cluster, used in place of processes; by default `$RAY_ADDRESS`. Its machines need this
            package, and the working folder, data and cache at the same paths.

    Returns:
        Error messages of one line by the name of the first site of the recipe; empty if all sites exist.

    Raises:
        InputError: `workers` is below 1, a source cannot list its recipes, or Ray is not installed.
    """
    from datamodules.progress import Progress

    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    address = address or os.environ.get("RAY_ADDRESS")
    payload = pickle.dumps([sources] if isinstance(sources, Source) else list(sources))
    _recipes.cache_clear()  # files may have changed since the last call
    recipes = _recipes(payload)
    missing = [
        number
        for number, (recipe, cache) in enumerate(recipes)
        if not recipe.is_made(cache) or recipe.work(cache).exists()
    ]
    outcomes: Iterable[Outcome]
    if len(missing) < 2:
        # in this process, where the source shows its own progress
        outcomes = ((number, _attempt(payload, number)) for number in missing)
    elif address:
        outcomes = _on_ray(payload, missing, address)
    else:
        outcomes = _on_this_machine(payload, missing, min(workers or len(_cores()), len(missing)))
    sizes = [len(recipe.names) for recipe, _ in recipes]
    failures = {}
    with Progress(sum(sizes), "making sites", "site", disable=len(missing) == 1) as progress:
        progress.update(sum(sizes) - sum(sizes[number] for number in missing))
        for number, problem in outcomes:
            recipe, cache = recipes[number]
            if problem is None and not recipe.is_made(cache):
                problem = f"was made on another machine: {cache.resolve()} must be storage that all machines share"
            if problem is not None:
                failures[recipe.names[0]] = problem
            progress.update(sizes[number])
    return failures


@lru_cache(maxsize=4)
def _recipes(payload: bytes) -> list[tuple[Recipe, Path]]:
    """List the recipes of pickled sources, each with its cache; the result is cached in each process."""
    sources: list[Source] = pickle.loads(payload)
    return [(recipe, source.cache) for source in sources for recipe in source.recipes()]


def _attempt(payload: bytes, number: int) -> str | None:
    """Make the sites of one recipe; return the error message in one line, or None."""
    try:
        make(*_recipes(payload)[number])
    except Exception as error:  # other recipes continue after an error of one area or of a library
        return remedied(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _on_this_machine(payload: bytes, missing: list[int], workers: int) -> Iterator[Outcome]:
    """Make recipes in processes; those running when a process died are repeated once, one at a time."""
    suspects: list[int] = []
    todo = list(reversed(missing))
    while todo:
        for number, problem in _in_pool(payload, todo, workers):
            if problem is _DIED:
                suspects.append(number)
            else:
                yield number, problem
    for number in suspects:
        yield from _in_pool(payload, [number], 1)


def _in_pool(payload: bytes, todo: list[int], workers: int) -> Iterator[Outcome]:
    """Make recipes from the end of `todo` until it is empty or a process dies."""
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork would copy locks of Dr.Jit and PyTorch, but not their threads
    start = (context.Value("i", 0), workers)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=start)
    running: dict[Future[str | None], int] = {}
    try:
        while todo or running:
            while todo and len(running) < workers:
                number = todo.pop()
                with _main_hidden(payload):
                    running[pool.submit(_attempt, payload, number)] = number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                yield number, future.result()
    except BrokenProcessPool:
        yield from ((lost, _DIED) for lost in (number, *running.values()))
    except BaseException:  # interrupted, terminated, or closed by the caller: running recipes are abandoned
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _main_hidden(payload: bytes) -> Iterator[None]:
    """Prevent new processes from running the user's script again, unless it defines one of the sources."""
    main = sys.modules["__main__"]
    if b"__main__" not in payload:
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker(counter: Synchronized[int], workers: int) -> None:
    """Assign a new process its cores, and let it end with its parent."""
    os.environ["TQDM_DISABLE"] = "1"  # the parent shows the only bar
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    cores = _cores()
    own = cores[rank % workers :: workers] or [cores[rank % len(cores)]]
    # Dr.Jit starts one thread for each core of the affinity mask; PyTorch has already counted the cores
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _on_ray(payload: bytes, missing: list[int], address: str) -> Iterator[Outcome]:
    """Make recipes on a Ray cluster, one task of one core for each."""
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"Ray is asked for ({address}) but not installed: pip install 'csi-foundation[ray]', or unset RAY_ADDRESS"
        ) from error
    try:
        if found := re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address):
            # Ray itself would retry for minutes
            socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=10).close()
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({' '.join(str(error).split())[:200]}): start one with "
            "`ray start --head`, or unset RAY_ADDRESS"
        ) from error
    task = ray.remote(num_cpus=1)(_attempt_in)
    todo = list(reversed(missing))
    running: dict[object, int] = {}
    while todo or running:
        while todo and len(running) < _AHEAD:
            number = todo.pop()
            running[task.remote(os.getcwd(), payload, number)] = number
        [done], _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            yield number, ray.get(done)
        except ray.exceptions.RayError as error:
            yield number, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _attempt_in(folder: str, payload: bytes, number: int) -> str | None:
    """Call `_attempt` in the working folder of the driver."""
    os.environ["TQDM_DISABLE"] = "1"
    try:
        os.chdir(folder)
    except OSError as error:
        return f"{folder} is not on every machine of the cluster ({error.strerror})"
    return _attempt(payload, number)
