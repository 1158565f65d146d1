"""Which warnings and errors nodes log for a good reason, and under which nemesis.

Every line has its reason. What is not here is an anomaly of the run: either a bug, or a line that belongs here.
"""

from collections.abc import Iterable
from typing import Final

from jepsen.checkers.log_lines import Expected
from jepsen.periods import BUSY

DAEMONS: Final = frozenset({"kill", "kill-all", "rejoin"})
"""A daemon ends without a farewell, or for a while."""
STALLS: Final = frozenset({"pause-short", "pause-long", "clock", "slow"})
NETWORK: Final = frozenset(
    {"isolate-primary", "halves", "ring", "one-way", "consul-only", "peers-only", "flapping", "slow"}
)
CONSUL: Final = frozenset({"consul-leader", "wipe-consul", "consul-only"})
DISKS: Final = frozenset({"disk-full", "io-error"})
UNPLANNED: Final = DAEMONS | STALLS | NETWORK | CONSUL | DISKS | {BUSY}
"""Another node may take over from a primary that does not agree; also when the machine does not keep up."""
HANDOFFS: Final = frozenset({"failover", "rejoin"})
APPLICATIONS: Final = frozenset({"kill-client"})
APPLIERS: Final = frozenset({"kill-applier", "kill-all", "io-error", "disk-full"})
CHANGES: Final = UNPLANNED | HANDOFFS


def _group(
    why: str, during: Iterable[str], *events: str, level: str = "warning", saying: tuple[str, ...] = ()
) -> list[Expected]:
    return [Expected(event, why, level, frozenset(during), saying) for event in events]


EXPECTED: Final[tuple[Expected, ...]] = (
    *_group("the SQLite of this machine's Python has that bug", (), "sqlite_with_wal_reset_bug"),
    *_group("a COMMIT was refused after SQLite had written it, or its application died", (), "wal_index_reset"),
    *_group(
        "the machine is busy, so Consul is late once; when it stays so the lease is lost, and that is said too",
        (),
        "lease_not_renewed",
        "members_not_exchanged",
        saying=("no answer within", "does not answer in time"),
    ),
    *_group("SQLite before 3.42 writes transactions that nobody can recover: they fail", (), "commit_not_captured"),
    *_group(
        "a WAL is made anew while somebody leaves WAL mode",
        (),
        "commit_refused",
        saying=("while this one left WAL mode",),
    ),
    # ---------------------------------------------------------------------------------------------------- who leads
    *_group(
        "Consul, or the way to it, is away for a while, or this node stood still",
        UNPLANNED,
        "consul_session_lost",
        "consul_session_not_ended",
        "consul_session_not_renewed",
        "election_waits",
        "history_not_read",
        "lease_lost",
        "lease_not_left",
        "lease_not_reached",
        "lease_not_readable",
        "lease_not_released",
        "lease_not_renewed",
        "members_not_exchanged",
        "no_candidate",
        "offer_not_taken_back",
        "promotion_failed",
        "reign_not_recorded",
    ),
    *_group("an offer is withdrawn when nobody took it", HANDOFFS, "lease_lost", "offer_not_taken_back"),
    *_group("Consul has forgotten it, or has ended the session", UNPLANNED | {"wipe-consul"}, "lease_key_made_anew"),
    *_group("the process beside the daemon was killed with it", DAEMONS | DISKS, "last_will_started_again"),
    *_group("a node whose disk fails ends by an error, while it does not reach Consul", DISKS, "lease_left_to_child"),
    *_group("a node is stopped and can hand over to nobody", CHANGES, "replicas_lack_transactions"),
    *_group(
        "an application is in a transaction and does not end it", HANDOFFS, "writers_do_not_yield", "writers_not_held"
    ),
    # --------------------------------------------------------------------------------------------------- who follows
    *_group("the primary is gone, or the way to it", CHANGES, "replication_interrupted", "replica_replaced"),
    *_group(
        "an old primary had what the cluster has not: it is listed, and put aside",
        UNPLANNED,
        "connections_cut_off",
        "database_unknown_to_primary",
        "history_diverged",
        "log_set_aside",
        "replica_asks_snapshot",
        "replica_diverged",
        "snapshot_needed",
        "transactions_kept",
    ),
    *_group("it was away for longer than the log is kept", DAEMONS | DISKS, "replica_too_far_behind"),
    # -------------------------------------------------------------------------------------------------- applications
    *_group("they are told that this node is not the primary (any more)", CHANGES, "commits_not_accepted"),
    *_group(
        "a COMMIT is on its way when the primary goes, or a slow promotion gives it up: nobody knows what became of it",
        CHANGES | APPLIERS,
        "commit_outcome_unknown",
        "commit_unknown",
    ),
    *_group("whoever has the lock loses it with the primary", CHANGES | APPLIERS, "lock_lost", "lock_lost_here"),
    *_group(
        "a commit was logged, and its application was told an error or died before it published it",
        CHANGES | APPLICATIONS,
        "unlink_refused",
        "wal_rewind_refused",
    ),
    *_group(
        "a WAL is not emptied: its writer was told an error, or the applier has not yet said that it has applied it",
        CHANGES | APPLICATIONS,
        "applier.checkpoint_failed",
        saying=("disk I/O error",),
    ),
    # --------------------------------------------------------------------------------------------- ends and beginnings
    *_group("a daemon that was killed leaves its mount", DAEMONS | DISKS, "stale_mount_removed"),
    *_group(
        "a daemon that was killed leaves the end of a record, and pages whose checksums are not on the disk",
        DAEMONS | DISKS,
        "page_checksums_rebuilt",
        "torn_tail_dropped",
    ),
    *_group("a killed applier is started again", APPLIERS, "applier.died", "applier.killed", "applier_not_asked"),
    *_group("one that waits for a lock is ended when the role changes", CHANGES, "applier_ended", "applier.died"),
    *_group("an applier is killed while it starts", APPLIERS, "applier.start_failed", level="error"),
    *_group("the rest of a killed applier's work is asked for again", APPLIERS, "hold_not_asked", "release_failed"),
    *_group(
        "a node that stands still does not hear in time", STALLS | DAEMONS, "applier.killed", "not_demoted_in_time"
    ),
    *_group("a proxy sees that its node is gone, or stands still", DAEMONS | STALLS | DISKS | {BUSY}, "node_lost"),
    *_group("one that does not end in time is killed", DAEMONS | STALLS | {BUSY}, "proxy_killed"),
    *_group(
        "a killed client has files in all mounts: where one stands still it cannot end, nor let go of its locks",
        {"pause-short", "pause-long"},
        "apply_failed",
        level="error",
        saying=("holds SQLite's write lock",),
    ),
    *_group(
        "who began under a journal when its node was the primary keeps the applier out until its COMMIT is refused",
        CHANGES,
        "apply_failed",
        level="error",
        saying=("uses it without a WAL",),
    ),
    *_group(
        "a journal mode is changed while the role does",
        CHANGES,
        "commit_refused",
        saying=("WAL mode is left on the primary only", "is read through a WAL since this node was a replica"),
    ),
    *_group(
        "a refused change of the journal mode is taken back where the applier is about to open the WAL: tried again",
        CHANGES,
        "apply_failed",
        level="error",
        saying=("-wal'",),
    ),
    *_group(
        "a journal of a dead writer is played back by an application and by the node at the same time",
        CHANGES | APPLICATIONS,
        "write_refused",
        saying=("rolled back by this node already",),
    ),
    # ---------------------------------------------------------------------------------------------------------- disks
    *_group(
        "the disk takes nothing, or answers with an error",
        DISKS,
        "applier.checkpoint_failed",
        "commit_refused",
        "commits_refused",
        "epoch_not_noted",
        "folder_not_durable",
        "group_taken_back",
        "history_not_kept",
        "install_incomplete",
        "journal_not_rolled_back",
        "log_unreadable",
        "refused_not_spoiled",
        "reign_not_noted",
    ),
    *_group(
        "a node that is started while the disk fails says so, and ends",
        DISKS,
        "unformatted",
        level="error",
        saying=("cannot be used (Input/output error", "cannot be used (No space left on device"),
    ),
    *_group(
        "the same, where the node can do nothing about it",
        DISKS,
        "apply_failed",
        "commit_not_completed",
        "fenced",
        "group_stays",
        "maintenance_failed",
        "retention_failed",
        "scrub_failed",
        "snapshot_failed",
        "stop_not_clean",
        level="error",
    ),
)
