"""Next in line for a lock: threads that wait in the kernel for what an application has.

Knows how a lock is waited for without a look at it again and again, and how a wait is given up. Does not know what the
lock is for (wal_lock.py).

An application that tries again at once after a refusal leaves SQLite's write lock free for some tens of microseconds:
whoever looks at it now and then never finds it so, but the kernel wakes who waits in F_OFD_SETLKW with the unlock. The
lock belongs to the open file description, so the apply thread has it as soon as the thread got it; it is woken through
``wakes``. The kernel does not hand a lock over: it wakes, and whoever is faster gets it. An application that is faster
each time is met by a thread that is awake at the unlock: now and then, and less and less often, it looks without a
pause for CLOSE_LOOK_S (``look_closely``). Not always: an open transaction would cost a processor.

Not for RESERVED (write_lock.py): the kernel gives that to the first in line also when a writer dies, over a journal
that nobody has rolled back yet, and until it is given back readers would take the dead writer's pages for committed.

A wait ends in one of three ways, and in each the thread no longer uses the descriptor once that is told: it got the
lock; the call failed; or ``leave`` gave it up. That interrupts the call by a signal, again and again, because one that
comes just before the call is lost; a lock that was got meanwhile is given back. So a descriptor is closed only after
``leave``, and neither a number that is another file's by now nor a lock that nobody knows of is ever left behind.
Nothing has to be given up when the process ends: the kernel does it.
"""

import ctypes
import errno
import fcntl
import os
import signal
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import Final

from litereplica.applier import locks

MOST_WAITING: Final = 16
"""Threads at most, of some 50 KiB each: as many databases may have an application in a transaction and something to
apply. For any beyond that the lock is looked at now and then."""

CLOSE_LOOK_S: Final = 0.002
"""Twice what an application takes from one refusal of its commit to the next."""

# Its default is to be ignored, so it does no harm to a process that does not expect it.
_INTERRUPT: Final = signal.SIGURG
_INTERRUPT_AGAIN_S: Final = 0.001

# Not fcntl.fcntl(): that goes on waiting after a signal.
_fcntl = ctypes.CDLL(None, use_errno=True).fcntl


class Place:
    """One wait for one byte of ``descriptor``, on behalf of ``name``."""

    __slots__ = ("_descriptor", "_ended", "_error", "_given_up", "_is_locked", "_offset", "name", "thread")

    def __init__(self, name: str, descriptor: int, offset: int) -> None:
        self.name = name
        # Of the thread that waits, from when it began.
        self.thread = 0
        self._descriptor = descriptor
        self._offset = offset
        self._ended = threading.Event()
        self._given_up = False
        self._is_locked = False
        self._error = 0

    @property
    def is_served(self) -> bool:
        """Whether the lock is had now, by the descriptor; False while it is waited for. Raises OSError."""
        if not self._ended.is_set():
            return False
        if self._error:
            raise OSError(self._error, f"waiting for a lock failed: {os.strerror(self._error)}")
        return True

    def leave(self) -> None:
        """Wait no longer, and have no lock; takes some microseconds."""
        self._given_up = True
        while not self._ended.is_set():
            if self.thread:
                signal.pthread_kill(self.thread, _INTERRUPT)
            self._ended.wait(_INTERRUPT_AGAIN_S)
        if self._is_locked:
            locks.release(self._descriptor, self._offset)

    def look_closely(self) -> None:
        """Have the thread look without a pause for a moment; a thread that is about to wait may miss it."""
        if self.thread and not self._ended.is_set():
            signal.pthread_kill(self.thread, _INTERRUPT)

    def wait(self) -> None:
        """In the thread that waits."""
        wanted = locks.flock(fcntl.F_WRLCK, self._offset)
        self.thread = threading.get_ident()
        try:
            while not self._given_up and not self._is_locked:
                if _fcntl(self._descriptor, fcntl.F_OFD_SETLKW, wanted) == 0:
                    self._is_locked = True
                elif (error := ctypes.get_errno()) == errno.EINTR:
                    self._is_locked = self._look()
                else:
                    self._error = error
                    break
        except OSError as error:
            self._error = error.errno or errno.EIO
        finally:
            self._ended.set()

    def _look(self) -> bool:
        end = time.monotonic() + CLOSE_LOOK_S
        while not self._given_up and time.monotonic() < end:
            if locks.try_exclusive(self._descriptor, self._offset):
                return True
        return False


class Line:
    """The threads, of which none is made before it is needed. ``wakes`` is readable when ``served`` has an answer.

    Made in the main thread, as signal handlers are; everything but the threads' own part belongs to it.
    """

    def __init__(self) -> None:
        self.wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wanted: SimpleQueue[Place] = SimpleQueue()
        self._served: deque[str] = deque()
        self._threads = 0
        # Places that were taken, less those that ended.
        self._free = MOST_WAITING
        self._count_lock = threading.Lock()
        signal.signal(_INTERRUPT, _ignore)

    def enter(self, name: str, descriptor: int, offset: int) -> Place | None:
        """Wait for the byte alone, until it is there or the place is left; None when too many wait."""
        with self._count_lock:
            if not self._free:
                return None
            self._free -= 1
            is_new = MOST_WAITING - self._free > self._threads
        if is_new:
            self._threads += 1
            threading.Thread(target=self._run, name="lock", daemon=True).start()
        place = Place(name, descriptor, offset)
        self._wanted.put(place)
        return place

    def served(self) -> set[str]:
        """For whom a wait has ended since this was asked last."""
        os.eventfd_read(self.wakes)
        found = set()
        while self._served:
            found.add(self._served.popleft())
        return found

    def _run(self) -> None:
        while True:
            place = self._wanted.get()
            place.wait()
            with self._count_lock:
                self._free += 1
            self._served.append(place.name)
            os.eventfd_write(self.wakes, 1)
            del place


def _ignore(_number: int, _frame: object) -> None:
    """What a signal interrupts is all that it is for."""
