from tests.support.nodes import Nodes
from tests.support.sql import run_sql, make_database, fold, byte_equal, integrity
from tests.support.waiting import wait_until

def test_try(nodes: Nodes) -> None:
    a = nodes.primary()
    b = nodes.replica(a)
    make_database(a.path(), rows=100)
    b.wait_for("app.db", a.position())
    assert run_sql(b.path(), "select count(*) from t", mode="ro") == [(100,)]
    fold(a.path())
    wait_until(lambda: byte_equal(a.path(), b.path()), "equal")
    assert integrity(b.path()) == "ok"
    b.stop()
    a.stop()
