"""Counters of bad elements: where tables add them up, and copies of those on a GPU, which arrive by themselves."""

from dataclasses import dataclass, field

import torch

from . import capture
from .parameter import Parameter

# Counters of a board: 8 KiB, which one copy brings.
_BOARD = 1024


@dataclass(eq=False)
class Counter:
    """What the steps of a table have counted, by parameter."""

    parameters: list[Parameter]
    counts: torch.Tensor  # int64, on the table's device
    turns: int = 0  # steps, or refusals of one
    seen_turns: int = field(default=0, repr=False)  # of them the host knows of
    is_left: bool = False  # the table is used no more


class Board:
    """Counters in a GPU's memory for several tables, and how they stood when the host saw them last."""

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
        """Counters for these parameters, at 0; None where there is no room for them."""
        end = self._used + len(parameters)
        if end > len(self._counts):
            return None
        counter = Counter(parameters, self._counts[self._used : end])
        self._begins[counter], self._used = self._used, end
        self.counters.append(counter)
        return counter

    def take_turn(self, counter: Counter) -> None:
        """After a step of a table: sends all counts, once in each round of the tables (every step where there is one)."""
        if counter is self._leader or self._leader is None or counter in self._since_sent:
            self._leader = counter
            self._since_sent.clear()
            self.send()
        else:
            self._since_sent.add(counter)

    def send(self) -> None:
        """Enqueues a copy to the host, unless one is under way."""
        if self._coming is not None or capture.is_capturing(self.device):
            return
        is_cuda = self.device.type == "cuda"
        self._coming = torch.empty(self._used, dtype=torch.int64, device="cpu", pin_memory=is_cuda)
        self._coming.copy_(self._counts[: self._used], non_blocking=True)
        self._turns_of_coming = {counter: counter.turns for counter in self.counters}
        self._arrival = torch.cuda.current_stream(self.device).record_event() if is_cuda else None

    def received(self, waits: bool = False) -> list[tuple[Counter, list[int] | None, bool]]:
        """What is new in a copy that has arrived.

        Of each table: what it has counted since (None: nothing), and whether it took a turn.
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
        """Of counters whose last counts have arrived."""
        left = [c for c in self.counters if c.is_left and self._turns_of_coming.get(c) == c.turns]
        for counter in left:
            self.counters.remove(counter)
            del self._begins[counter]
            if counter is self._leader:
                self._leader = None
        self._turns_of_coming = {}
        if any(counter.is_left for counter in self.counters):
            self.send()
