"""Runs a program on a mount and on a plain directory, one operation at a time, and compares the answers.

Knows what each operation does to processes and nodes. Does not know which operations come (generating) nor which
differences are allowed (tolerated).
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.cluster.group import Group, kill, kill_applier
from tests.differential.comparing import BURST, JUDGE, compare, question_on_disk
from tests.differential.operations import Operation, program_text
from tests.differential.sides import Answer, Side, Silent
from tests.differential.state import LIBRARIES, Connection, State, burst_key, victim_of
from tests.differential.tolerated import RETRY_S, Circumstances, is_tolerated, may_be_tried_again
from tests.support.waiting import wait_until

GLANCE: Final = (
    "SELECT (SELECT user_version FROM pragma_user_version), (SELECT page_count FROM pragma_page_count),"
    " (SELECT journal_mode FROM pragma_journal_mode)"
)
READER: Final = "reader"
RETRY_STEP_S: Final = 0.005
VISIBLE_S: Final = 10.0
# Statements that are a transaction of their own, or several.
ALONE: Final = ("VACUUM", "PRAGMA")
MARK: Final = 1_000_000
"""Interrupted transactions leave numbers from here on in user_version."""
DONE: Final = Answer((), "", "", in_transaction=False)
# These are done on both sides by the worker that the connection belongs to; the rest concern whole sides.
BY_CONNECTION: Final = ("run", "close", "backup", "dump", "persist")


class Difference(Exception):
    """The mount and the plain disk are not alike. ``program`` is what was run, up to the operation that shows it."""

    def __init__(self, what: str, program: list[Operation]) -> None:
        super().__init__(what)
        self.what = what
        self.program = program


@dataclass(frozen=True, slots=True)
class Part:
    """What an interrupted transaction does in one database; its position before."""

    database: str
    before: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interrupted:
    """``atomic``: SQLite promises that all databases have it, or none."""

    connection: str
    parts: list[Part]
    atomic: bool


def statements_of(parts: list[Part]) -> list[str]:
    if parts[0].statements[0].startswith(ALONE):
        return [*parts[0].statements]
    return ["BEGIN IMMEDIATE", *(each for part in parts for each in part.statements), "COMMIT"]


class Run:
    """One program on new nodes and a new directory; use it as a context."""

    def __init__(self, replicas: int, *, rollback: bool) -> None:
        """``rollback``: databases outside WAL mode are expected to be replicated."""
        self.state = State()
        self.done: list[Operation] = []
        self.group = Group(replicas)
        self._rollback = rollback
        self._so_far = Circumstances()
        self._marks = 0
        root = self.group.folder / "plain"
        root.mkdir()
        libraries = {**LIBRARIES, JUDGE: "apsw"}
        self._plain = Side("the plain disk", root, libraries)
        self._mount = Side("the primary", self.group.primary_node.mount, libraries)
        self._replicas = [(each, Side(each.name, each.mount, libraries)) for each in self.group.replicas]
        # By name of the replica: worker, database and what the reader found at first.
        self._readers: dict[str, tuple[str, str, Answer]] = {}

    def __enter__(self) -> Self:
        try:
            self.group.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.group.abort()
        for side in (self._plain, self._mount, *(each for _, each in self._replicas)):
            side.kill_all()
        problems = self.group.tear_down()
        if kind is None and problems:
            raise Difference(f"left behind: {problems}", self.done)

    def logs(self, lines: int = 12) -> str:
        """The last that each node wrote."""
        return "".join(
            f"---- {each.name} ----\n" + "".join(each.log.splitlines(keepends=True)[-lines:]) for each in self.group.all
        )

    def all(self, program: Iterable[Operation]) -> None:
        """Raises Difference. Operations that are not possible (any more) are left out."""
        for operation in program:
            if not self.state.is_possible(operation):
                continue
            self.done.append(operation)
            try:
                answer = self._one(operation)
            except (AssertionError, Silent) as error:
                raise Difference(f"{operation}: {error}", self.done) from error
            self.state.after(operation, answer)
        surprises = self.group.surprises()
        if surprises:
            raise Difference("\n".join(surprises), self.done)

    def _one(self, operation: Operation) -> Answer:
        verb, words = operation.verb, operation.words
        if verb == "open":
            return self._both(operation, words[1], "open", words[0], words[2])
        if verb in BY_CONNECTION:
            connection = self.state.connections[words[0]]
            worker, self._so_far.in_transaction = connection.worker, connection.in_transaction
            arguments = (words[0], words[1], int(words[2])) if verb == "backup" else words
            return self._both(operation, worker, verb, *arguments)
        if verb in ("remove", "copy"):
            self._end_readers(words[-1])
            return self._both(operation, JUDGE, verb, *words)
        whole: dict[str, Callable[..., None]] = {
            "kill": self._kill,
            "killing": self._killing,
            "crash": self._crash,
            "crashing": self._crashing,
            "restart": self._restart,
            "stop": self._stop,
            "fault": self._fault,
            "reader": self._reader,
            "burst": self._burst,
            "compare": self._compare,
        }
        whole[verb](*words)
        return DONE

    # -- the same on both sides ------------------------------------------------------------------------------------

    def _both(self, operation: Operation, worker: str, *request: object) -> Answer:
        for side in (self._plain, self._mount):
            side.worker(worker).send(*request)
        plain, mount = (side.worker(worker).receive() for side in (self._plain, self._mount))
        end = time.monotonic() + RETRY_S
        while may_be_tried_again(operation, plain, mount, self._so_far) and time.monotonic() < end:
            time.sleep(RETRY_STEP_S)
            mount = self._mount.ask(worker, *request)
        alike = (plain.rows, plain.error, plain.in_transaction) == (mount.rows, mount.error, mount.in_transaction)
        if not alike and not is_tolerated(operation, plain, mount, self._so_far):
            raise AssertionError(f"\n  plain disk: {plain}\n  mount:      {mount}")
        return plain

    # -- ends ------------------------------------------------------------------------------------------------------

    def _kill(self, worker: str) -> None:
        self._so_far.ended_abruptly = True
        for side in (self._plain, self._mount):
            side.kill(worker)

    def _begin(self, name: str, changes: str, delay_us: str) -> Interrupted:
        """Have the mount's worker begin a transaction, over both databases if one is attached; let it run so long."""
        self._marks += 1
        self._so_far.ended_abruptly = True
        connection = self.state.connections[name]
        parts, atomic = [], True
        alone = changes.startswith(ALONE)
        for schema, change in zip(("main", "other"), changes.split(" ;; "), strict=False):
            mark = f"PRAGMA {schema}.user_version={MARK + self._marks}"
            database = connection.database if schema == "main" else connection.attached
            parts.append(
                Part(database, self.group.primary_node.position(database), (change,) if alone else (change, mark))
            )
            mode, synchronous = (
                self._setting(connection, f"{schema}.{each}") for each in ("journal_mode", "synchronous")
            )
            # SQLite writes a super-journal for these only.
            atomic = atomic and mode != "wal" and synchronous != "0"
        self._mount.worker(connection.worker).send("transaction", name, *statements_of(parts))
        time.sleep(int(delay_us) / 1e6)
        return Interrupted(name, parts, atomic)

    def _setting(self, connection: Connection, pragma: str) -> str:
        """Asked on both sides, because asking opens the database."""
        answers = [
            side.ask(connection.worker, "run", connection.name, f"PRAGMA {pragma}")
            for side in (self._plain, self._mount)
        ]
        return str(answers[0].rows[0][0]) if answers[0].rows else ""

    def _finish(self, interrupted: Interrupted) -> list[str]:
        """The plain disk has the transaction too, as far as the mount has it; the databases that have it."""
        node = self.group.primary_node
        committed = [part for part in interrupted.parts if node.position(part.database) != part.before]
        if interrupted.atomic:
            assert len(committed) in (0, len(interrupted.parts)), f"only {committed} of {interrupted} was committed"
        if committed:
            worker = self.state.connections[interrupted.connection].worker
            answer = self._plain.ask(worker, "transaction", interrupted.connection, *statements_of(committed))
            assert not answer.error, f"the mount committed what a plain disk does not: {answer}"
        return [part.database for part in committed]

    def _killing(self, name: str, delay_us: str, changes: str) -> None:
        worker, used = self.state.connections[name].worker, self._databases_of(name)
        interrupted = self._begin(name, changes, delay_us)
        self._mount.kill(worker)
        # All requests of a process are answered before it is gone, so the log says whether this one committed.
        committed = self._finish(interrupted)
        self._plain.kill(worker)
        if committed:
            # What is logged is shown by the next user, after some milliseconds.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: all(self._looks_equal(each) for each in used), "", VISIBLE_S)
        self._assert_looks_equal(used)

    def _databases_of(self, name: str) -> list[str]:
        connection = self.state.connections[name]
        return [connection.database, *([connection.attached] if connection.attached else [])]

    def _look(self, side: Side, database: str) -> Answer:
        """What a new reader sees at first sight; on a plain disk it also settles what a crash left behind."""
        return self._asked(side, database, GLANCE)

    def _looks_equal(self, database: str) -> bool:
        return self._look(self._plain, database) == self._look(self._mount, database)

    def _assert_looks_equal(self, databases: list[str]) -> None:
        for each in databases:
            plain, mount = (self._look(side, each) for side in (self._plain, self._mount))
            assert (plain.rows, plain.error) == (mount.rows, mount.error), (
                f"a reader of {each} finds {plain} on a plain disk, on the mount {mount}"
            )

    def _crash(self) -> None:
        self._so_far.ended_abruptly = True
        kill(self.group.primary_node)
        self._come_back()

    def _crashing(self, name: str, delay_us: str, changes: str) -> None:
        used = self._databases_of(name)
        interrupted = self._begin(name, changes, delay_us)
        kill(self.group.primary_node)
        self._mount.kill_all()
        self.group.primary_node.start()
        self._finish(interrupted)
        self._plain.kill_all()
        self._settle()
        self._assert_looks_equal(used)

    def _come_back(self) -> None:
        for side in (self._plain, self._mount):
            side.kill_all()
        self.group.primary_node.start()
        self._settle()

    def _settle(self) -> None:
        """A started node has rolled journals back and folded WALs in; on a plain disk the next reader does that."""
        for name, _ in self._plain.ask(JUDGE, "list").rows:
            self._look(self._plain, name)

    def _close_all(self) -> None:
        for name, connection in self.state.connections.items():
            self._both(Operation("close", (name,)), connection.worker, "close", name)

    def _restart(self) -> None:
        self._close_all()
        self.state.connections.clear()
        self._mount.end_all()
        self.group.primary_node.stop()
        self.group.primary_node.start()
        self._so_far.ended_abruptly = True  # as for the WALs
        self._settle()

    def _stop(self) -> None:
        """A clean stop while applications have files open, and transactions too: those are lost with them."""
        self._so_far.ended_abruptly = True
        self.group.primary_node.stop()
        self._come_back()

    def _fault(self, number: str, what: str) -> None:
        """Of a replica, or of the primary's applier; replicas that this run does not have are the last one."""
        node = self.group.all[min(int(number), len(self.group.all) - 1)]
        if what == "applier":
            # A node whose very first applier does not come up ends, as documented.
            if node.get("/readyz")[0] == 200:
                kill_applier(node)
        elif node is not self.group.primary_node:
            side = next(side for each, side in self._replicas if each is node)
            self._readers.pop(node.name, None)
            side.kill_all()
            with contextlib.suppress(AssertionError):
                kill(node)
            node.start(wait=False)

    def _reader(self, number: str, worker: str, database: str) -> None:
        if not self._replicas:
            return
        _, side = self._replicas[int(number) % len(self._replicas)]
        self._end_reader(side)
        self._end_reader(side)
        listed = side.ask(worker, "list")
        if database not in {name for name, _ in listed.rows}:
            return  # not there yet
        opened = [side.ask(worker, "open", READER, database), side.ask(worker, "run", READER, "BEGIN")]
        found = side.ask(worker, "dump", READER)
        assert not any(each.error for each in (*opened, found)), f"{side.name}: {opened}, {found}"
        assert found.rows[-1] == ("integrity_check", [("ok",)]), f"{side.name}: {found.rows[-1]}"
        self._readers[side.name] = worker, database, found

    def _end_reader(self, side: Side) -> None:
        worker, database, found = self._readers.pop(side.name, ("", "", DONE))
        if worker:
            again = side.ask(worker, "dump", READER)
            side.ask(worker, "close", READER)
            assert again == found, f"{side.name}: the snapshot of {database} was {found}, now it is {again}"

    def _end_readers(self, database: str = "") -> None:
        for _, side in self._replicas:
            if side.name in self._readers and database in ("", self._readers[side.name][1]):
                self._end_reader(side)

    def _burst(self, mode: str, count: str, seed: str, delay_us: str) -> None:
        """All workers write at the same time; with a delay, one of them is killed on the mount meanwhile."""
        burst = (mode, int(count), int(seed))
        if not int(delay_us):
            for side in (self._plain, self._mount):
                self._start_burst(side, burst, "", 0)
                self._end_burst(side, list(LIBRARIES))
            return
        victim = victim_of(int(seed))
        others = [each for each in LIBRARIES if each != victim]
        self._so_far.ended_abruptly = True
        self._start_burst(self._mount, burst, victim, int(count))
        time.sleep(int(delay_us) / 1e6)
        self._mount.kill(victim)
        self._end_burst(self._mount, others)
        first = burst_key(victim, int(seed))
        question = f"SELECT count(*) FROM t0 WHERE id >= {first} AND id < {first + int(count)}"
        made = question_on_disk(self.group.primary_node, BURST, question)
        # What is logged is shown by the next user, after some milliseconds.
        wait_until(lambda: self._asked(self._mount, BURST, question).rows == ((made,),), f"{made} are seen", VISIBLE_S)
        self._start_burst(self._plain, burst, victim, made)
        self._end_burst(self._plain, list(LIBRARIES))
        self._plain.kill(victim)

    def _start_burst(self, side: Side, burst: tuple[str, int, int], victim: str, made: int) -> None:
        """``made``: after so many commits the victim ends by itself."""
        mode, count, seed = burst
        for sql in (f"PRAGMA journal_mode={mode}", "CREATE TABLE IF NOT EXISTS t0 (id INTEGER PRIMARY KEY, v BLOB)"):
            answer = self._asked(side, BURST, sql)
            assert not answer.error, f"{side.name}: {sql}: {answer}"
        for worker in LIBRARIES:
            most = made if worker == victim else count
            side.worker(worker).send("burst", BURST, mode, burst_key(worker, seed), count, most, bool(victim))

    def _end_burst(self, side: Side, workers: list[str]) -> None:
        said = [side.worker(worker).receive() for worker in workers]
        assert not any(each.error for each in said), f"{side.name}: {[str(each) for each in said]}"

    def _asked(self, side: Side, database: str, sql: str) -> Answer:
        side.ask(JUDGE, "open", JUDGE, database)
        answer = side.ask(JUDGE, "run", JUDGE, sql)
        side.ask(JUDGE, "close", JUDGE)
        return answer

    # -- everything ------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        self._close_all()
        self.state.connections.clear()
        self._end_readers()
        for replica, _ in self._replicas:
            wait_until(lambda replica=replica: replica.get("/readyz")[0] == 200, f"{replica.name} is ready", 60.0)  # type: ignore[misc]
        compare(self._plain, self._mount, self.group.primary_node, self._replicas, rollback=self._rollback)


def describe(difference: Difference, title: str, logs: str) -> str:
    """For a person: the program so far, and what differed."""
    return f"{title}\n{program_text(difference.program)}{difference.what}\n{logs}"
