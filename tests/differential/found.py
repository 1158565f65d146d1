"""Programs that once showed a difference, shortened: name of the behaviour, and the program (operations.py)."""

from typing import Final

FOUND: Final[dict[str, str]] = {
    "pages spilled beyond the end of a database that a savepoint then gives up": """
        open c2 w3 folder/c.db
        run c2 PRAGMA page_size=1024
        run c2 PRAGMA cache_size=50
        run c2 CREATE TABLE IF NOT EXISTS main.t1 (id INTEGER PRIMARY KEY, v BLOB)
        run c2 SAVEPOINT s
        run c2 WITH RECURSIVE n(i) AS (SELECT 117 UNION ALL SELECT i + 1 FROM n WHERE i < 267) \
INSERT OR REPLACE INTO main.t1 (id, v) SELECT i, content(i + 10, 699) FROM n
        run c2 ROLLBACK TO s
        run c2 COMMIT
        compare
        """,
    "VACUUM INTO with a cache so small that the first page is not the first to be written": """
        open c6 w2 a.db
        run c6 PRAGMA journal_mode=WAL
        run c6 PRAGMA cache_size=1
        run c6 CREATE TABLE t0 (id INTEGER PRIMARY KEY, v BLOB)
        run c6 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
INSERT OR REPLACE INTO main.t0 (id, v) SELECT i, content(i, 3000) FROM n
        run c6 VACUUM INTO '%ROOT%/into.db'
        compare
        """,
    "VACUUM with pages of 1 KiB, one of whose pieces has the length of a frame header": """
        open c6 w1 c.db
        run c6 PRAGMA page_size=1024
        run c6 PRAGMA journal_mode=WAL
        run c6 CREATE TABLE t0 (id INTEGER PRIMARY KEY, v BLOB)
        run c6 CREATE TABLE t1 (id INTEGER PRIMARY KEY, v BLOB)
        run c6 CREATE TABLE t2 (id INTEGER PRIMARY KEY, v BLOB)
        run c6 CREATE TABLE t3 (id INTEGER PRIMARY KEY, v BLOB)
        close c6
        open c6 w1 c.db
        run c6 WITH RECURSIVE n(i) AS (SELECT 33 UNION ALL SELECT i + 1 FROM n WHERE i < 183) \
INSERT OR REPLACE INTO main.t0 (id, v) SELECT i, content(i + 5, 388) FROM n
        run c6 VACUUM main
        compare
        """,
    "a transaction begun before others were killed, of a connection that does not wait for locks": """
        open c8 w2 a.db
        run c8 CREATE TABLE t0 (id INTEGER PRIMARY KEY, v BLOB)
        run c8 PRAGMA journal_mode=WAL
        open c9 w1 a.db
        run c9 INSERT INTO t0 (id, v) VALUES (199, content(1, 225))
        open c10 w0 a.db
        run c10 BEGIN
        run c10 SELECT count(*) FROM t0
        kill w2
        kill w1
        run c10 UPDATE t0 SET v = content(id, 199) WHERE id BETWEEN 199 AND 259
        run c10 COMMIT
        open c8 w2 a.db
        run c8 SELECT count(*) FROM t0
        open c9 w1 a.db
        run c9 DELETE FROM t0
        run c10 BEGIN
        run c10 SELECT count(*) FROM t0
        kill w2
        kill w1
        run c10 UPDATE t0 SET v = content(id, 199) WHERE id BETWEEN 199 AND 259
        run c10 COMMIT
        compare
        """,
}
