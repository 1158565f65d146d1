"""How fast is a checkpoint: a WAL of 64 MB brought into the database file, fsyncs and all, with nobody in the way."""

from benchmarks.harness.figures import Answer, Figure
from benchmarks.harness.processes import client
from benchmarks.harness.question import Effort, Question, discard, take_turns
from benchmarks.harness.systems import OWN_SYSTEMS, Lab, System

SIZE_BYTES = 64_000_000


def ask(lab: Lab, effort: Effort) -> Answer:
    figure = Figure("checkpoint of a 64 MB WAL", "MB/s")

    def measure(system: System, turn: int) -> None:
        database = f"benchmark-checkpoint-{turn}.db"
        found = client("checkpoint", path=system.directory / database, size_bytes=SIZE_BYTES)
        figure.add(system.name, found["bytes"] / found["seconds"] / 1e6)
        discard(system, [database])

    with lab.systems(QUESTION.name, OWN_SYSTEMS, peers=True) as present:
        take_turns(present, effort.rounds, measure)
    return Answer([figure], present.failures)


QUESTION = Question("checkpoint", "Checkpoint", ask)
