"""How the sides of a comparison are run: in turn, on one thread, by CPU time; memory in a process of its own."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

ROUNDS = 5
SECONDS = 0.2
"""Of CPU time that a side gets in a round."""


def interleave(sides: Sequence[Iterator[int]], rounds: int = ROUNDS) -> list[list[float]]:
    """Return each side's CPU seconds per unit of its work, a value per round.

    Every side runs in every round, so that a busy moment hits all of them. A first round is not counted: files come
    into the page cache and kernels are chosen in it.

    Args:
        sides: endless; each item is a piece of work, done, and says how much it was: images, steps or calls.
        rounds: to count.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(1 + rounds):
        for side, taken in zip(sides, seconds, strict=True):
            taken.append(_timed(side))
    return [taken[1:] for taken in seconds]


def _timed(work: Iterator[int]) -> float:
    started, units = time.process_time(), 0
    while (spent := time.process_time() - started) < SECONDS:
        units += next(work)
    return spent / units


class Turn:
    """A side's turn, in a process of its own; see `interleave_processes`."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._started: float | None = None
        self._ready = False

    def __call__(self) -> None:
        """End the turn if there is one, and return when the next one begins."""
        if self._started is not None:
            self._end(time.process_time() - self._started)
        if not self._ready:
            self._ready = True
            self._pipe.send(None)
        self._pipe.recv()
        self._started = time.process_time()

    def fill(self, work: Iterator[int]) -> None:
        """Take a turn of `SECONDS` of an endless work, whose items are as those of `interleave`."""
        self()
        self._end(_timed(work))

    def _end(self, seconds: float) -> None:
        self._started = None
        self._pipe.send((seconds, memory_of_process("VmHWM")))


@dataclass(frozen=True)
class Measured:
    """What the turns of a process took.

    Attributes:
        seconds: of CPU time for a unit of work, of each turn.
        peak: of its resident memory in megabytes, everything it has imported included.
    """

    seconds: list[float]
    peak: float


def interleave_processes(sides: Sequence[Callable[[Turn], None]], turns: int = 1 + ROUNDS) -> list[Measured]:
    """Run each side in a process of its own, in turn, and return what its turns took.

    For sides that would share what belongs to a process: settings of the allocator, the peak of the memory.

    Args:
        sides: picklable; each prepares itself, then calls its `Turn` before each piece of work, without an end.
        turns: of each side; the first is a warm-up, and it is the caller who leaves it out.

    Raises:
        RuntimeError: a side has ended before its last turn.
    """
    context = get_context("spawn")
    pipes, processes = [], []
    seconds: list[list[float]] = [[] for _ in sides]
    peaks = [0.0 for _ in sides]
    try:
        for side in sides:
            pipe, end = context.Pipe()
            process = context.Process(target=_take_turns, args=(side, end))
            process.start()
            processes.append(process)
            # Or a side that fails would leave it open, and this process waiting.
            end.close()
            # Until it is ready for its first turn.
            pipe.recv()
            pipes.append(pipe)
        for _ in range(turns):
            for index, pipe in enumerate(pipes):
                pipe.send(None)
                spent, peaks[index] = pipe.recv()
                seconds[index].append(spent)
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("A side has ended too early; its own message stands above.") from error
    finally:
        for process in processes:
            # Lightning does not end by SIGTERM.
            process.kill()
            process.join()
    return [Measured(taken, peak) for taken, peak in zip(seconds, peaks, strict=True)]


def _take_turns(side: Callable[[Turn], None], pipe: Connection) -> None:
    _begin()
    side(Turn(pipe))


def _begin() -> None:
    torch.set_num_threads(1)
    # What a side has to say is no part of the table.
    sys.stdout = io.StringIO()


def in_child(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a new process of one thread, which has nothing of this one's memory."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_begin) as pool:
        return pool.submit(function, *args, **kwargs).result()


def memory_of_process(entry: str) -> float:
    """Return a line of ``/proc/self/status`` in megabytes. Linux only.

    Args:
        entry: ``VmHWM`` for the peak of the resident memory (``ru_maxrss`` is no less than that of the process that
            started this one), ``RssAnon`` for the present one without the pages of mapped files, which any process
            may share and the kernel drops when it needs room.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[entry].split()[0]) * 1024 / 1e6
