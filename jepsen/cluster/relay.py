"""A TCP relay that delivers everything late, in order and whole, by as much as it is told while it runs.

``python -m jepsen.cluster.relay SETTINGS LISTEN:TARGET …`` accepts on each LISTEN port and connects to TARGET on
127.0.0.1. The file SETTINGS, which the other process writes anew as a whole, has the delay of each direction, the most
that chance adds, and the share of pieces that are late by a lost packet: TCP sends it again after its timeout, and what
comes behind it waits. Knows bytes, and nothing of what they say.
"""

import asyncio
import contextlib
import functools
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 64 * 1024
PIECES_UNDER_WAY: Final = 256
"""In one direction of one connection, so that who does not read does not fill the memory: 16 MiB."""
RETRANSMIT_S: Final = 0.2
"""The least that Linux waits before it sends a lost packet again (tcp.h, TCP_RTO_MIN)."""
LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Delay:
    """Of one direction. ``lost``: share of pieces, 0 to 1."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    lost: float = 0.0

    def of_a_piece(self, numbers: random.Random) -> float:
        """How late one piece arrives."""
        found = self.delay_s + numbers.uniform(0, self.jitter_s)
        wait_s = RETRANSMIT_S
        while numbers.random() < self.lost and wait_s < 8:
            found += wait_s
            wait_s *= 2
        return found


def write(settings: Path, delay: Delay) -> None:
    """The relay takes it within LOOK_S."""
    new = settings.with_name(f"{settings.name}.new")
    new.write_text(json.dumps(asdict(delay)), encoding="ascii")
    new.replace(settings)


class Relay:
    """All connections of one process."""

    def __init__(self, settings: Path) -> None:
        self._settings = settings
        self._numbers = random.Random(str(settings))  # noqa: S311 - chance, no secret
        self._delay = Delay()

    async def run(self, ports: list[tuple[int, int]]) -> None:
        """Until it is killed."""
        servers = [
            await asyncio.start_server(functools.partial(self._join, target), "0.0.0.0", port)  # noqa: S104 - a namespace of its own
            for port, target in ports
        ]
        async with contextlib.AsyncExitStack() as stack:
            for each in servers:
                await stack.enter_async_context(each)
            while True:
                with contextlib.suppress(FileNotFoundError):
                    self._delay = Delay(**json.loads(self._settings.read_text(encoding="ascii")))
                await asyncio.sleep(LOOK_S)

    async def _join(self, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions of one connection, until one has ended with an error or both in order."""
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
            tasks = [
                asyncio.create_task(each) for each in (self._carry(reader, far_writer), self._carry(far_reader, writer))
            ]
            _, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in running:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            far_writer.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES_UNDER_WAY)

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async def take() -> None:
            due = 0.0
            while True:
                data = await reader.read(PIECE_BYTES)
                # In order: nothing overtakes what was sent before it.
                due = max(due, loop.time() + self._delay.of_a_piece(self._numbers))
                await under_way.put((due, data))
                if not data:
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            group.create_task(take())


def main(arguments: list[str]) -> None:
    """Carry until killed."""
    ports = [(int(listen), int(target)) for listen, _, target in (each.partition(":") for each in arguments[1:])]
    asyncio.run(Relay(Path(arguments[0])).run(ports))


if __name__ == "__main__":
    main(sys.argv[1:])
