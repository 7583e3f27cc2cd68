"""Counts of gradient elements that are NaN, infinite or at least 2^48, on GPUs without blocking."""

import warnings
from typing import Any, cast

import torch

from . import _operators as ops
from .parameter import Counter, Parameter

# The number of bad steps in a row that gives a warning.
_STREAK = 3
# Number of counters of a board: 8 KiB, small enough for one copy.
_BOARD = 1024


class NonFiniteError(RuntimeError):
    """A gradient is NaN, infinite or at least 2^48, and the policy is "error". Nothing was changed."""


class Board:
    """Counters of several tables in a GPU's memory, and the host's last copy of them."""

    def __init__(self, device: torch.device, size: int) -> None:
        self.device = device
        self.counters: list[Counter] = []
        self._counts = torch.zeros(max(size, _BOARD), dtype=torch.int64, device=device)
        self._seen = torch.zeros(self._counts.shape, dtype=torch.int64, device="cpu")
        self._used = 0
        self._begins: dict[Counter, int] = {}
        self._coming: torch.Tensor | None = None
        self._turns_of_coming: dict[Counter, int] = {}
        self._arrival: torch.cuda.Event | None = None
        self._leader: Counter | None = None
        self._since_sent: set[Counter] = set()

    def __contains__(self, counter: Counter) -> bool:
        return counter in self._begins

    def counter(self, parameters: list[Parameter]) -> Counter | None:
        """New counters for these parameters, at 0; None if the board has no room."""
        end = self._used + len(parameters)
        if end > len(self._counts):
            return None
        counter = Counter(parameters, self._counts[self._used : end])
        self._begins[counter], self._used = self._used, end
        self.counters.append(counter)
        return counter

    def take_turn(self, counter: Counter) -> None:
        """Call after a step of a table. Sends all counts once in each round of the tables."""
        if counter is self._leader or self._leader is None or counter in self._since_sent:
            self._leader = counter
            self._since_sent.clear()
            self.send()
        else:
            self._since_sent.add(counter)

    def send(self) -> None:
        """Enqueues a copy to the host, unless one is in flight."""
        if self._coming is not None or ops.is_capturing(self.device):
            return
        is_cuda = self.device.type == "cuda"
        self._coming = torch.empty(self._used, dtype=torch.int64, device="cpu", pin_memory=is_cuda)
        self._coming.copy_(self._counts[: self._used], non_blocking=True)
        self._turns_of_coming = {counter: counter.turns for counter in self.counters}
        self._arrival = torch.cuda.current_stream(self.device).record_event() if is_cuda else None

    def received(self, waits: bool = False) -> list[tuple[Counter, list[int] | None, bool]]:
        """The new counts of a copy that has arrived.

        For each table: its new counts (None: no bad elements), and whether it made a step since the last
            copy.
        """
        if self._coming is None:
            return []
        if self._arrival is not None:
            if waits:
                self._arrival.synchronize()
            elif not self._arrival.query():
                return []
        counts, self._coming = self._coming, None
        new = counts - self._seen[: len(counts)]
        self._seen[: len(counts)] = counts
        is_new = bool(new.any())
        found: list[tuple[Counter, list[int] | None, bool]] = []
        for counter, turns in self._turns_of_coming.items():
            took_turn, counter.seen_turns = turns != counter.seen_turns, turns
            begin = self._begins[counter]
            part = new[begin : begin + len(counter.parameters)] if is_new else None
            found.append((counter, None if part is None or not part.any() else part.tolist(), took_turn))
        self._let_go()
        return found

    def _let_go(self) -> None:
        """Drops unused counters whose last counts have arrived."""
        left = [c for c in self.counters if c.is_left and self._turns_of_coming.get(c) == c.turns]
        for counter in left:
            self.counters.remove(counter)
            del self._begins[counter]
            if counter is self._leader:
                self._leader = None
        self._turns_of_coming = {}
        if any(counter.is_left for counter in self.counters):
            self.send()


class BadElements:
    """Counts of bad gradient elements, kept by parameter.

    Counts on a GPU are added up there. A step enqueues a copy to the host, and a later step reads it when it
    has arrived. So no step blocks, and warnings come a few steps late.
    """

    def __init__(self) -> None:
        self._streaks: dict[Parameter, int] = {}
        self._boards: list[Board] = []
        # During a step of ZeroRedundancyOptimizer: its process group, and a device of its ranks.
        self.ranks: tuple[Any, torch.device] | None = None

    def counter(self, parameters: list[Parameter], device: torch.device) -> Counter:
        """New counters for a table of these parameters, at 0."""
        if not ops.is_gpu(device):
            return Counter(parameters, torch.zeros(len(parameters), dtype=torch.int64, device=device))
        for board in self._boards:
            if board.device == device and (found := board.counter(parameters)) is not None:
                return found
        self._boards.append(Board(device, len(parameters)))
        return cast(Counter, self._boards[-1].counter(parameters))

    def forget(self, parameter: Parameter | None) -> None:
        """Drops a parameter that has left the optimizer."""
        if parameter is not None:
            self._streaks.pop(parameter, None)

    def take(self, counter: Counter) -> None:
        """Adds the counts of a step."""
        if ops.is_gpu(counter.counts.device):
            self._take_what_arrived(counter)
        elif counter.counts.any():
            self.add(counter, counter.counts.tolist())
            counter.counts.zero_()
        else:
            self._end_streaks(counter)

    def take_refused(self, counter: Counter, counts: torch.Tensor) -> None:
        """Adds the counts of a step that the policy has refused."""
        if ops.is_gpu(counter.counts.device):
            counter.counts.add_(counts)
            counter.turns += 1
            self.take(counter)
        else:
            self.add(counter, counts.tolist())

    def take_ranks(self) -> tuple[Any, torch.device] | None:
        """The ranks of a ZeroRedundancyOptimizer for this step, which are then cleared."""
        ranks, self.ranks = self.ranks, None
        return ranks

    def _take_what_arrived(self, counter: Counter) -> None:
        for board in self._boards:
            self._receive(board)  # copies of earlier steps
        self._boards = [board for board in self._boards if board.counters]
        for board in self._boards:
            if counter in board:
                board.take_turn(counter)
                self._receive(board)

    def _receive(self, board: Board, waits: bool = False) -> None:
        """Adds the counts of a copy that has arrived. Several steps since the last copy count as one."""
        for counter, new, took_turn in board.received(waits):
            if new is None:
                if took_turn:
                    self._end_streaks(counter)
            elif took_turn:
                self.add(counter, new)
            else:  # a graph was replayed
                for parameter, count in zip(counter.parameters, new, strict=True):
                    parameter.bad_elements += count

    def collect(self) -> None:
        """Adds all counts that are still on GPUs. Blocks."""
        for board in self._boards:
            self._receive(board, waits=True)
            board.send()
            self._receive(board, waits=True)

    def leave(self, counter: Counter) -> None:
        """Marks the counters of a table that is not stepped again. They are dropped after their last counts
        arrive.
        """
        counter.is_left = True
        for board in self._boards:
            if counter in board:
                board.send()

    def _end_streaks(self, counter: Counter) -> None:
        if self._streaks:
            for parameter in counter.parameters:
                self._streaks.pop(parameter, None)

    def add(self, counter: Counter, counts: list[int]) -> None:
        """Adds the counts of one step, and warns after several bad steps in a row."""
        streaks = []
        for parameter, count in zip(counter.parameters, counts, strict=True):
            parameter.bad_elements += count
            if count == 0:
                self._streaks.pop(parameter, None)
                continue
            self._streaks[parameter] = self._streaks.get(parameter, 0) + 1
            if self._streaks[parameter] == _STREAK:
                streaks.append(parameter.name)
        if streaks:
            warnings.warn(
                f"gradients were NaN, infinite or at least 2^48 in {_STREAK} steps in a row and skipped: "
                f"{listed(streaks)}; lower the learning rate or the loss scale",
                stacklevel=2,
            )


def listed(names: list[str], most: int = 5) -> str:
    """The first names, as text for an error message of one line."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
