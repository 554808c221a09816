"""Psycopg 3 through the router: what an application does with it. Run by drivers/main.rs."""
import datetime
import decimal
import os
import threading
import time
import uuid

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

from scenarios import MODE, Suite, wait_for

DSN = os.environ["STEMMA_DSN"]
suite = Suite("psycopg")


def connect(**options):
    return psycopg.connect(DSN, **{"autocommit": True, **options})


def one(connection, query, *parameters, **options):
    return connection.execute(query, parameters or None, **options).fetchone()[0]


class Crowd:
    """Other clients that hold servers in turn, so that the one under test meets several servers."""

    def __init__(self, size=2):
        self.clients = [connect() for _ in range(size)]

    def __enter__(self):
        return self

    def shuffle(self, turn):
        holder = self.clients[turn % len(self.clients)]
        if holder.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            holder.execute("BEGIN")
            holder.execute("SELECT 1")
        else:
            holder.execute("ROLLBACK")

    def __exit__(self, *_):
        for client in self.clients:
            client.close()


@suite.scenario
def prepared_by_the_protocol():
    with connect() as client, Crowd() as crowd:
        for turn in range(30):
            crowd.shuffle(turn)
            assert one(client, "SELECT %s::int + 1", turn, prepare=True) == turn + 1
            assert one(client, "SELECT %s::text || 'x'", str(turn), prepare=True, binary=True) == f"{turn}x"


@suite.scenario
def prepared_statements_that_the_driver_throws_away():
    # Past prepared_max the driver says DEALLOCATE (or Close, by its libpq) for the oldest one.
    with connect() as client, Crowd() as crowd:
        client.prepared_max = 3
        for turn in range(20):
            crowd.shuffle(turn)
            assert one(client, f"SELECT %s::int + {turn}", 1, prepare=True) == turn + 1
        assert one(client, "SELECT %s::int + 19", 1, prepare=True) == 20


@suite.scenario
def a_statement_of_the_protocol_is_deallocated_by_sql():
    with connect() as client, connect() as other:
        for round in range(3):
            for each in (client, other):
                each.pgconn.prepare(b"mine", b"SELECT $1::int * 3")
                result = each.pgconn.exec_prepared(b"mine", [b"5"])
                assert result.get_value(0, 0) == b"15", result.error_message
            client.execute("DEALLOCATE mine")
            gone = client.pgconn.exec_prepared(b"mine", [b"5"])
            assert gone.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"26000", gone.error_message
            # The other client's statement has the same text and the same name, and stays.
            assert other.pgconn.exec_prepared(b"mine", [b"6"]).get_value(0, 0) == b"18"
            other.execute("DEALLOCATE PREPARE \"mine\"", prepare=False)
            try:
                client.execute("DEALLOCATE mine")
                raise AssertionError("it was gone")
            except psycopg.errors.InvalidSqlStatementName:
                pass
        client.pgconn.prepare(b"mine", b"SELECT 1")
        client.execute("DEALLOCATE ALL")
        assert client.pgconn.exec_prepared(b"mine", []).error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"26000"


@suite.scenario
def prepared_by_sql():
    with connect() as client, Crowd() as crowd:
        client.execute("PREPARE twice (int) AS SELECT $1 * 2")
        for turn in range(10):
            crowd.shuffle(turn)
            assert one(client, f"EXECUTE twice({turn})") == 2 * turn
        client.execute("DEALLOCATE twice")
        try:
            client.execute("EXECUTE twice(1)")
            raise AssertionError("it was gone")
        except psycopg.errors.InvalidSqlStatementName:
            pass


@suite.scenario
def pipeline():
    with connect() as client, Crowd() as crowd:
        client.execute("CREATE TABLE piped (a int)")
        for turn in range(10):
            crowd.shuffle(turn)
            with client.pipeline() as pipe:
                cursors = [client.execute("SELECT %s::int", (n,)) for n in range(50)]
                client.execute("INSERT INTO piped SELECT generate_series(1, 10)")
                pipe.sync()
                cursors += [client.execute("SELECT %s::int", (n,), prepare=True) for n in range(50)]
                count = client.execute("SELECT count(*) FROM piped")
                assert [cursor.fetchone()[0] for cursor in cursors] == list(range(50)) * 2
                assert count.fetchone()[0] == 10 * (turn + 1), "it reads what it wrote"


@suite.scenario
def an_error_in_a_pipeline_ends_its_segment_only():
    with connect() as client:
        client.execute("CREATE TABLE survivors (a int PRIMARY KEY)")
        for _ in range(10):
            client.execute("TRUNCATE survivors")
            try:
                with client.pipeline() as pipe:
                    client.execute("INSERT INTO survivors VALUES (1)")
                    pipe.sync()
                    client.execute("INSERT INTO survivors VALUES (2)")
                    client.execute("INSERT INTO survivors VALUES (1)")
                    client.execute("INSERT INTO survivors VALUES (3)")
                    pipe.sync()
                raise AssertionError("a duplicate was taken")
            except psycopg.errors.UniqueViolation:
                pass
            with client.pipeline():
                client.execute("INSERT INTO survivors VALUES (4)", prepare=True)
            assert [row[0] for row in client.execute("SELECT a FROM survivors ORDER BY a")] == [1, 4]


@suite.scenario
def an_error_in_a_pipeline_within_a_transaction():
    with connect(autocommit=False) as client:
        try:
            with client.pipeline():
                client.execute("SELECT 1")
                client.execute("SELECT 1/0")
                client.execute("SELECT 2")
            raise AssertionError("divided by zero")
        except psycopg.errors.DivisionByZero:
            pass
        assert client.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        client.rollback()
        assert one(client, "SELECT 3") == 3


@suite.scenario
def copy_in_and_out():
    with connect() as client, Crowd() as crowd:
        client.execute("CREATE TABLE copied (a int, b text, c timestamptz)")
        moment = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc)
        for turn, form in enumerate(["", " (FORMAT binary)"]):
            crowd.shuffle(turn)
            client.execute("TRUNCATE copied")
            with client.cursor().copy(f"COPY copied FROM STDIN{form}") as copy:
                copy.set_types(["int4", "text", "timestamptz"])
                for n in range(20000):
                    copy.write_row((n, f"text {n}\t\\", moment))
            with client.cursor().copy(f"COPY copied TO STDOUT{form}") as copy:
                copy.set_types(["int4", "text", "timestamptz"])
                rows = list(copy.rows())
            assert len(rows) == 20000 and rows[777] == (777, "text 777\t\\", moment), rows[777]
        big = "y" * 3_000_000
        with client.cursor().copy("COPY copied (a, b) FROM STDIN") as copy:
            copy.write_row((-1, big))
        assert one(client, "SELECT length(b) FROM copied WHERE a = -1") == len(big)


@suite.scenario
def a_copy_that_fails_and_one_that_is_given_up():
    with connect() as client:
        client.execute("CREATE TABLE strict (a int)")
        try:
            with client.cursor().copy("COPY strict FROM STDIN") as copy:
                for n in range(100000):
                    copy.write(b"no number\n")
            raise AssertionError("text went into a number")
        except psycopg.errors.InvalidTextRepresentation:
            pass
        try:
            with client.cursor().copy("COPY strict FROM STDIN") as copy:
                copy.write(b"1\n")
                raise KeyError("the application changes its mind")
        except KeyError:
            pass
        assert one(client, "SELECT count(*) FROM strict") == 0
        client.execute("INSERT INTO strict SELECT generate_series(1, 200000)")
        cursor = client.cursor()
        try:
            with cursor.copy("COPY strict TO STDOUT") as copy:
                copy.read()
                raise KeyError("enough of it")
        except KeyError:
            pass
        assert one(client, "SELECT 7") == 7


@suite.scenario
def cancel():
    with connect() as client, connect() as innocent:
        for safe in (False, True):
            timer = threading.Timer(0.5, client.cancel_safe if safe else client.cancel)
            innocent_done = []
            calm = threading.Thread(target=lambda: innocent_done.append(one(innocent, "SELECT pg_sleep(1), 5") is not None))
            calm.start()
            began = time.monotonic()
            timer.start()
            try:
                client.execute("SELECT pg_sleep(30)")
                raise AssertionError("it was not cancelled")
            except psycopg.errors.QueryCanceled:
                assert time.monotonic() - began < 20
            calm.join()
            timer.join()
            assert innocent_done, "the other client's statement was hit"
            assert one(client, "SELECT 1") == 1
        # Nothing runs: nothing is hit, not even what comes next on the same server.
        for n in range(20):
            client.cancel()
            assert one(client, "SELECT %s::int", n) == n


@suite.scenario
def the_routers_own_settings():
    with connect() as client, connect() as other:
        for _ in range(8):
            token = one(client, "SHOW stemma.token")
            other.execute(sql.SQL("SET stemma.token = {}").format(token))
        assert one(client, "SHOW stemma.token", prepare=True).startswith("v1:") or token == ""
        with client.transaction():
            client.execute("SET LOCAL stemma.consistency = 'strong'")
            assert one(client, "SHOW stemma.consistency", prepare=True) == "strong"
        assert one(client, "SHOW stemma.consistency", prepare=True) == "session"
        client.prepared_max = 1
        for n in range(6):
            assert one(client, f"SELECT {n}", prepare=True) == n
        assert one(client, "EXPLAIN ROUTE INSERT INTO x VALUES (1)") == "primary"
        try:
            client.execute("SET stemma.consistency = 'sometimes'")
            raise AssertionError("taken for something")
        except psycopg.errors.InvalidParameterValue:
            pass


@suite.scenario
def settings_follow():
    options = {"application_name": "follower", "options": "-c work_mem=5MB"}
    with connect(**options) as client, connect() as other, Crowd() as crowd:
        client.execute("CREATE SCHEMA IF NOT EXISTS elsewhere")
        client.execute("CREATE TABLE elsewhere.here (a int)")
        client.execute("SET search_path TO elsewhere, public")
        client.execute("SET TIME ZONE 'Asia/Tokyo'")
        for turn in range(12):
            crowd.shuffle(turn)
            assert one(client, "SELECT count(*) FROM here") == 0
            assert one(client, "SHOW application_name") == "follower"
            assert one(client, "SHOW work_mem") == "5MB"
            assert one(client, "SHOW TimeZone") == "Asia/Tokyo"
            assert one(other, "SHOW application_name") == ""
            assert one(other, "SHOW work_mem") == "4MB"
            assert one(other, "SELECT to_regclass('here')") is None
        client.execute("SET application_name TO 'renamed'")
        assert client.info.parameter_status("application_name") == "renamed"
        assert client.info.parameter_status("TimeZone") == "Asia/Tokyo"
        with client.transaction():
            client.execute("SET LOCAL work_mem = '9MB'")
            client.execute("SET statement_timeout = '7s'")
            raise psycopg.Rollback
        assert (one(client, "SHOW work_mem"), one(client, "SHOW statement_timeout")) == ("5MB", "0")
        client.execute("RESET TimeZone")
        client.execute("SET client_encoding TO 'LATIN1'")
        assert one(client, "SELECT 'caf\u00e9'") == "caf\u00e9"
        assert one(other, "SELECT 'caf\u00e9 \u20ac'") == "caf\u00e9 \u20ac"


@suite.scenario
def savepoints():
    with connect() as client:
        client.execute("CREATE TABLE kept (a int)")
        with client.transaction():
            client.execute("INSERT INTO kept VALUES (1)")
            for _ in range(3):
                try:
                    with client.transaction():
                        client.execute("SET work_mem = '8MB'")
                        client.execute("INSERT INTO kept VALUES (2)")
                        client.execute("SELECT 1/0")
                except psycopg.errors.DivisionByZero:
                    pass
                assert one(client, "SHOW work_mem") == "4MB"
            with client.transaction("inner"):
                client.execute("INSERT INTO kept VALUES (3)")
        assert [row[0] for row in client.execute("SELECT a FROM kept ORDER BY a")] == [1, 3]


@suite.scenario
def binary_types():
    with connect() as client:
        values = [
            (decimal.Decimal("12345678901234567890.123456789"), "numeric"),
            (uuid.uuid4(), "uuid"),
            (datetime.datetime.now(datetime.timezone.utc), "timestamptz"),
            (datetime.date(2026, 1, 31), "date"),
            (datetime.timedelta(days=3, seconds=7), "interval"),
            (bytes(range(256)) * 40, "bytea"),
            ([[1, 2], [3, None]], "int[]"),
            (["a", None, "\u20ac\"{},"], "text[]"),
            (Range(1, 10), "int4range"),
            (2**62, "bigint"),
            (0.1, "float8"),
        ]
        for binary in (False, True):
            for value, kind in values:
                query = sql.SQL("SELECT {}::{}").format(sql.Placeholder(format=psycopg.adapt.PyFormat.BINARY if binary else psycopg.adapt.PyFormat.TEXT), sql.SQL(kind))
                found = client.execute(query, (value,), binary=binary).fetchone()[0]
                assert found == value, (kind, found, value)
            found = client.execute("SELECT %s::jsonb", (Jsonb({"a": [1, None, "\u20ac"]}),), binary=binary).fetchone()[0]
            assert found == {"a": [1, None, "\u20ac"]}


@suite.scenario
def large_rows():
    with connect() as client:
        text = "z" * 5_000_000
        assert one(client, "SELECT %s::text", text) == text
        assert one(client, "SELECT %s::bytea", text.encode(), binary=True) == text.encode()
        assert sum(len(row[0]) for row in client.execute("SELECT repeat('x', 100000) FROM generate_series(1, 50)")) == 5_000_000


@suite.scenario
def cursors_of_the_server():
    with connect(autocommit=False) as client:
        with client.cursor("rows") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            assert sum(row[0] for row in cursor) == 500500
        client.rollback()
        for row in client.cursor().stream("SELECT generate_series(1, 1000)"):
            assert row[0] > 0


@suite.scenario
def notifications():
    with connect() as listener, connect() as speaker, Crowd() as crowd:
        listener.execute("LISTEN news")
        for turn in range(3):
            crowd.shuffle(turn)
            speaker.execute("SELECT pg_notify('news', %s)", (str(turn),))
            heard = list(listener.notifies(timeout=20, stop_after=1))
            assert [note.payload for note in heard] == [str(turn)], heard
        listener.execute("UNLISTEN *")


@suite.scenario
def two_phase():
    with connect(autocommit=False) as client:
        client.execute("CREATE TABLE IF NOT EXISTS both_phases (a int)")
        client.commit()
        xid = client.xid(1, f"gtrid-{uuid.uuid4()}", "bqual")
        client.tpc_begin(xid)
        client.execute("INSERT INTO both_phases VALUES (1)")
        client.tpc_prepare()
        client.tpc_commit()
        assert one(client, "SELECT count(*) FROM both_phases") == 1


@suite.scenario
def reads_after_writes_while_reads_are_split():
    with connect() as client, connect() as reader:
        client.execute("CREATE TABLE numbered (a int)")
        client.execute("CREATE OR REPLACE FUNCTION place() RETURNS text LANGUAGE sql STABLE AS "
                       "$$ SELECT current_setting('transaction_read_only') $$")
        for n in range(100):
            client.execute("INSERT INTO numbered VALUES (%s)", (n,))
            assert one(client, "SELECT count(*) FROM numbered") == n + 1
        if MODE == "transaction":
            def read_elsewhere():
                with connect() as fresh:
                    return one(fresh, "SELECT place()") == "on"
            wait_for("a read on a replica", read_elsewhere)


@suite.scenario
def many_connections_come_and_go():
    for turn in range(40):
        with connect() as client:
            assert one(client, "SELECT %s::int", turn) == turn
            if turn % 3 == 0:
                client.execute("BEGIN")
                client.execute("CREATE TEMP TABLE left_behind (a int)")
            if turn % 3 == 1:
                client.execute("SET work_mem = '7MB'")
    with connect() as client:
        assert one(client, "SELECT to_regclass('pg_temp.left_behind')") is None
        assert one(client, "SHOW work_mem") == "4MB"


@suite.scenario
def a_connection_whose_server_is_killed():
    with connect() as client, connect() as killer:
        pid = one(client, "SELECT pg_backend_pid()")
        client.execute("BEGIN")
        client.execute("CREATE TABLE never (a int)")
        pid = one(client, "SELECT pg_backend_pid()")
        killer.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_for("the server to be gone", lambda: one(killer, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == 0)
        try:
            client.execute("SELECT 1")
            raise AssertionError("the transaction is gone")
        except psycopg.errors.SerializationFailure:
            pass
        client.execute("ROLLBACK")
        assert one(client, "SELECT to_regclass('never')") is None, "and the connection lives"


suite.run()
