"""The search for an order of the calls of one register.

It is Wing and Gong's with Lowe's two improvements (2017): what has been tried is remembered, and calls are put in order
no sooner than the answer of some call demands it. A configuration is the value of the register and the set of open
calls that already took effect; at each answer, there must be a configuration with a way to that answer.

A call whose outcome nobody knows stays open for ever. It is put in order only right before a call that needs the value
it leaves: an effect that nobody sees may as well come later, or never. Of several that do the same the oldest comes
first, and a configuration that used more of them than another that is otherwise equal is dropped.

Such calls can still make the number of configurations explode. So the search is made with few configurations first,
those that used the fewest: when it succeeds, there is an order. When it fails, it is made again with more.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from jepsen.history import Atom, Call

WIDTHS: Final = (50, 2_000, 500_000)
"""Configurations after an answer. More than the last number would need gigabytes: nobody knows then."""
LOOK_EVERY: Final = 256
NEVER: Final = 2**63

Configuration = tuple[Atom, frozenset[int]]
"""The value, and the open calls (by index) that took effect."""


class TooLong(Exception):
    """No answer within the limits."""


@dataclass(frozen=True, slots=True)
class Action:
    """A call as the register sees it.

    ``needs``: the value that it must find, if it ``demands`` one. ``leaves``: the value after it.
    """

    call: Call
    needs: Atom
    leaves: Atom
    demands: bool
    reads: bool

    @property
    def certain(self) -> bool:
        """It did happen."""
        return self.call.ok

    @property
    def began(self) -> int:
        return self.call.index

    @property
    def ended(self) -> int:
        """The index of its answer; without one it may happen at any later time."""
        return self.call.completion.index if self.call.completion is not None and self.call.ok else NEVER

    @staticmethod
    def same(one: Atom, two: Atom) -> bool:
        """Python takes 1 for True; a register does not."""
        return one == two and isinstance(one, bool) == isinstance(two, bool)

    def possible(self, value: Atom) -> bool:
        return not self.demands or self.same(self.needs, value)


@dataclass(frozen=True, slots=True)
class Stuck:
    """The first answer to which no order leads. ``values``: what the register can hold without the ``open`` calls."""

    action: Action
    values: frozenset[Atom]
    open: tuple[Action, ...]


def search(
    actions: Sequence[Action],
    initial: Atom,
    clock: Callable[[], float],
    until: float,
    widths: Sequence[int] = WIDTHS,
) -> Stuck | None:
    """None when there is an order; raises TooLong when ``clock`` has passed ``until`` before that is known."""
    for width in widths:
        one = _Search(actions, initial, width, clock, until)
        stuck = one.run()
        if stuck is None or not one.narrowed:
            return stuck
    raise TooLong


class _Search:
    def __init__(
        self, actions: Iterable[Action], initial: Atom, width: int, clock: Callable[[], float], until: float
    ) -> None:
        self.narrowed = False
        self._actions = {action.call.index: action for action in actions}
        self._configurations: set[Configuration] = {(initial, frozenset())}
        self._open: dict[int, Action] = {}
        self._unanswered: dict[tuple[Atom, Atom, bool], list[int]] = {}
        self._width = width
        self._clock = clock
        self._until = until
        self._steps = 0

    def run(self) -> Stuck | None:
        for _, index, begins in sorted(self._events()):
            action = self._actions[index]
            if begins and not action.certain:
                self._unanswered.setdefault((action.needs, action.leaves, action.demands), []).append(index)
            elif begins:
                self._open[index] = action
                if action.reads:
                    self._configurations = {self._with_reads(each) for each in self._configurations}
            else:
                reached = self._answer(action)
                if not reached:
                    values = frozenset(value for value, _ in self._configurations)
                    return Stuck(action, values, tuple(self._open.values()))
                self._configurations = self._least(reached)
                del self._open[index]
        return None

    def _events(self) -> Iterable[tuple[int, int, bool]]:
        for index, action in self._actions.items():
            yield index, index, True
            if action.certain:
                yield action.ended, index, False

    def _with_reads(self, one: Configuration) -> Configuration:
        """Open reads of the value that the register has take effect at once: that rules nothing out."""
        value, done = one
        also = [
            index
            for index, action in self._open.items()
            if action.reads and index not in done and action.possible(value)
        ]
        return (value, done.union(also)) if also else one

    def _answer(self, action: Action) -> set[Configuration]:
        """Configurations in which ``action`` took effect, and is not open any more: those that used fewest first."""
        reached: set[Configuration] = set()
        seen = set(self._configurations)
        waiting = [(self._used(each), number, each) for number, each in enumerate(seen)]
        heapify(waiting)
        while waiting:
            used, _, (value, done) = heappop(waiting)
            self._look(len(seen))
            if action.began in done:
                reached.add((value, done - {action.began}))
                if len(reached) >= self._width:
                    self.narrowed = self.narrowed or bool(waiting)
                    break
                continue
            for following, also in self._next(value, done):
                if following not in seen:
                    seen.add(following)
                    heappush(waiting, (used + also, len(seen), following))
        return reached

    def _used(self, one: Configuration) -> int:
        """How many calls without an answer."""
        return len(one[1] - self._open.keys())

    def _next(self, value: Atom, done: frozenset[int]) -> Iterable[tuple[Configuration, int]]:
        """With the number of calls without an answer that each uses more."""
        for index, action in self._open.items():
            if not action.reads and index not in done and action.possible(value):
                yield self._with_reads((action.leaves, done | {index})), 0
        for (_, leaves, _), alike in self._unanswered.items():
            index = next((each for each in alike if each not in done), -1)
            if index >= 0 and self._actions[index].possible(value) and self._needed(leaves, done, index):
                yield self._with_reads((leaves, done | {index})), 1

    def _needed(self, value: Atom, done: frozenset[int], by_other_than: int) -> bool:
        """Whether a call that did not take effect yet must find this value."""
        if any(action.demands and index not in done and action.possible(value) for index, action in self._open.items()):
            return True
        return any(
            demands and Action.same(needs, value) and any(each not in done and each != by_other_than for each in alike)
            for (needs, _, demands), alike in self._unanswered.items()
        )

    def _least(self, configurations: set[Configuration]) -> set[Configuration]:
        """Without those that only used up more calls without an answer than another with the same value."""
        if len(configurations) < 2:
            return configurations
        groups: dict[tuple[Atom, frozenset[int]], list[frozenset[int]]] = {}
        for value, done in configurations:
            sure = done & self._open.keys()
            groups.setdefault((value, frozenset(sure)), []).append(done - sure)
        kept: set[Configuration] = set()
        for (value, sure), several in groups.items():
            least: list[frozenset[int]] = []
            for one in sorted(several, key=len):
                if not any(other <= one for other in least):
                    least.append(one)
                    kept.add((value, sure | one))
        return kept

    def _look(self, size: int) -> None:
        self._steps += 1
        if size > WIDTHS[-1] or (self._steps % LOOK_EVERY == 0 and self._clock() > self._until):
            raise TooLong
