"""In which order the elements of each list came, and what contradicts any order.

Every list that is read shows how it came about: the longest one read is the order of its elements, and every other read
must be a beginning of it. Knows orders and what reads say about them (G1a, G1b, incompatible orders, duplicates,
elements from nowhere). Does not know cycles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jepsen.checkers.result import Findings
from jepsen.checkers.transactions import Element, Transaction, shortened
from jepsen.history import Atom


@dataclass(slots=True)
class Versions:
    """Of one key. ``order``: the elements that were read. ``unread``: they happened, and no read has them.

    ``readers``: by number of elements, who read so many.
    """

    order: list[Atom]
    unread: list[Atom] = field(default_factory=list)
    readers: dict[int, list[int]] = field(default_factory=dict)


class Orders:
    """All keys that have one order, and who wrote what. A transaction is its place in ``transactions``."""

    def __init__(self, transactions: Sequence[Transaction], findings: Findings) -> None:
        self.transactions = transactions
        self.writers: dict[Element, int] = {
            element: number for number, one in enumerate(transactions) for element in one.appends
        }
        self.versions: dict[Atom, Versions] = {}
        self._failed: dict[Atom, set[Atom]] = {}
        for one in transactions:
            if one.call.failed:
                for key, element in one.appends:
                    self._failed.setdefault(key, set()).add(element)
        self._findings = findings
        self._seen: set[int] = set()
        for key, reads in self._reads().items():
            self._key(key, reads)
        self._unread()

    def happened(self, number: int) -> bool:
        """Acknowledged, or without an answer and seen by somebody: then all of it happened."""
        return self.transactions[number].call.ok or number in self._seen

    def _reads(self) -> dict[Atom, list[tuple[int, list[Atom]]]]:
        found: dict[Atom, list[tuple[int, list[Atom]]]] = {}
        for number, one in enumerate(self.transactions):
            for key, read in one.reads:
                found.setdefault(key, []).append((number, read))
        return found

    def _key(self, key: Atom, reads: list[tuple[int, list[Atom]]]) -> None:
        longest_by, longest = max(reads, key=lambda each: len(each[1]))
        if len(set(longest)) != len(longest):
            self._duplicate(key, longest_by, longest)
            return
        compatible = True
        for number, read in reads:
            if longest[: len(read)] != read:
                compatible = False
                if len(set(read)) != len(read):
                    self._duplicate(key, number, read)
                else:
                    self._incompatible(key, (number, read), (longest_by, longest))
        for number, read in reads if not compatible else [(longest_by, longest)]:
            self._from_nowhere(key, number, read)
            self._seen.update(self.writers[key, each] for each in read if (key, each) in self.writers)
        if failed := self._failed.get(key):
            self._aborted(key, reads, failed)
        for number, read in reads:
            self._intermediate(key, number, read)
        self._own_order(key, longest_by, longest)
        if compatible:
            versions = self.versions[key] = Versions(longest)
            for number, read in reads:
                versions.readers.setdefault(len(read), []).append(number)

    def _unread(self) -> None:
        """Appends that happened and that nobody saw. Of a list that nobody read, or in two orders, nothing follows."""
        known = {key: set(versions.order) for key, versions in self.versions.items()}
        for number, one in enumerate(self.transactions):
            if self.happened(number) and not one.call.failed:
                for key, element in one.appends:
                    if key in known and element not in known[key]:
                        self.versions[key].unread.append(element)

    # ------------------------------------------------------------------------------------------------------ findings
    def _duplicate(self, key: Atom, number: int, read: list[Atom]) -> None:
        twice = next(element for at, element in enumerate(read) if element in read[:at])
        one = self.transactions[number]
        self._findings.add("duplicate", f"{one.name} read {shortened(read)} of {key}: {twice} is in it twice", one.call)

    def _incompatible(self, key: Atom, one: tuple[int, list[Atom]], two: tuple[int, list[Atom]]) -> None:
        (number, read), (longest_by, longest) = one, two
        at = next(at for at, element in enumerate(read) if element != longest[at])
        first, second = self.transactions[number], self.transactions[longest_by]
        self._findings.add(
            "incompatible-order",
            f"{first.name} read {shortened(read)} of {key} and {second.name} read {shortened(longest)}: they differ at "
            f"place {at + 1}, {read[at]} or {longest[at]}",
            first.call,
            second.call,
        )

    def _own_order(self, key: Atom, number: int, read: list[Atom]) -> None:
        """A transaction that appended several elements appended them in its order."""
        found: dict[int, list[Atom]] = {}
        for element in read:
            if (writer := self.writers.get((key, element))) is not None:
                found.setdefault(writer, []).append(element)
        for writer, elements in found.items():
            if len(elements) < 2:
                continue
            one, two = self.transactions[writer], self.transactions[number]
            expected = [element for on, element in one.appends if on == key and element in elements]
            if elements != expected:
                text = f"{one.name} appended {shortened(expected)} to {key}, and {two.name} read {shortened(elements)}"
                self._findings.add("own-order", text, one.call, two.call)

    def _from_nowhere(self, key: Atom, number: int, read: list[Atom]) -> None:
        one = self.transactions[number]
        for element in read:
            if (key, element) not in self.writers:
                self._findings.add(
                    "from-nowhere", f"{one.name} read {element} in {key}, which nobody ever appended", one.call
                )

    def _aborted(self, key: Atom, reads: list[tuple[int, list[Atom]]], failed: set[Atom]) -> None:
        """G1a: the first reader of each element of a transaction that certainly did not happen."""
        left = set(failed)
        for number, read in reads:
            for element in [element for element in read if element in left]:
                left.remove(element)
                one, two = self.transactions[number], self.transactions[self.writers[key, element]]
                self._findings.add(
                    "G1a", f"{one.name} read {element} in {key}, of {two.name}, which failed", one.call, two.call
                )

    def _intermediate(self, key: Atom, number: int, read: list[Atom]) -> None:
        """G1b: a read that ends with an element after which the same transaction appended another one."""
        writer = self.writers.get((key, read[-1])) if read else None
        if writer is None or writer == number:
            return
        one, two = self.transactions[number], self.transactions[writer]
        last = [element for on, element in two.appends if on == key][-1]
        if last != read[-1]:
            self._findings.add(
                "G1b",
                f"{one.name} read {key} up to {read[-1]}, in the middle of {two.name}, which also appended {last}",
                one.call,
                two.call,
            )
