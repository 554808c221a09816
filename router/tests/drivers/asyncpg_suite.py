"""Asyncpg through the router: it prepares everything and speaks binary. Run by drivers/main.rs."""
import asyncio
import datetime
import decimal
import io
import ipaddress
import os
import uuid

import asyncpg

from scenarios import MODE, Suite

DSN = os.environ["STEMMA_DSN_URL"]
suite = Suite("asyncpg")


class connect:
    def __init__(self, **options):
        self.options = options

    async def __aenter__(self):
        self.client = await asyncpg.connect(DSN, **self.options)
        return self.client

    async def __aexit__(self, *_):
        await self.client.close()


@suite.scenario
async def prepared_statements():
    async with connect() as client, connect() as other:
        await other.execute("BEGIN; SELECT 1")
        plus = await client.prepare("SELECT $1::int + 1")
        minus = await client.prepare("SELECT $1::int - 1")
        for n in range(30):
            if n % 5 == 4:
                await other.execute("ROLLBACK" if n % 2 else "BEGIN; SELECT 1")
            assert await plus.fetchval(n) == n + 1
            assert await minus.fetchval(n) == n - 1
            assert await client.fetchval("SELECT $1::text", str(n)) == str(n)
        assert [a.type.name for a in plus.get_parameters() and plus.get_attributes()] == ["int4"]
        await other.execute("ROLLBACK")


@suite.scenario
async def the_cache_of_statements_is_small():
    async with connect(statement_cache_size=2) as client:
        for n in range(30):
            assert await client.fetchval(f"SELECT $1::int + {n}", 1) == n + 1


@suite.scenario
async def statements_survive_a_change_of_the_table():
    async with connect() as client, connect() as other:
        await client.execute("CREATE TABLE changing (a int)")
        await client.execute("INSERT INTO changing VALUES (1)")
        assert dict(await client.fetchrow("SELECT * FROM changing")) == {"a": 1}
        await other.execute("ALTER TABLE changing ADD b text DEFAULT 'x'")
        # What others did may come to a replica a little later than it is told to them; what one did oneself may not.
        await client.execute("UPDATE changing SET a = a")
        assert dict(await client.fetchrow("SELECT * FROM changing")) == {"a": 1, "b": "x"}


@suite.scenario
async def the_routers_own_settings():
    async with connect() as client, connect() as other:
        await client.execute("CREATE TABLE tokens (a int)")
        for n in range(6):
            await client.execute("INSERT INTO tokens VALUES ($1)", n)
            token = await client.fetchval("SHOW stemma.token")
            await other.execute(f"SET stemma.token = '{token}'")
            assert await other.fetchval("SELECT count(*) FROM tokens") == n + 1
        await client.execute("SET stemma.consistency = 'eventual'")
        assert await client.fetchval("SHOW stemma.consistency") == "eventual"
        assert (await client.fetchrow("EXPLAIN ROUTE DELETE FROM tokens"))["target"] == "primary"
        await client.execute("RESET stemma.consistency")
        await client.execute("DROP TABLE tokens")


@suite.scenario
async def many_in_one_round_trip():
    async with connect() as client:
        await client.execute("CREATE TABLE many (a int PRIMARY KEY, b text)")
        await client.executemany("INSERT INTO many VALUES ($1, $2)", [(n, f"text {n}") for n in range(5000)])
        assert await client.fetchval("SELECT count(*) FROM many") == 5000
        try:
            await client.executemany("INSERT INTO many VALUES ($1, $2)", [(5000, "a"), (5001, "b"), (1, "c"), (5002, "d")])
            raise AssertionError("a duplicate was taken")
        except asyncpg.UniqueViolationError:
            pass
        assert await client.fetchval("SELECT count(*) FROM many") == 5000, "all or nothing"
        assert len(await client.fetchmany("SELECT $1::int AS a", [(n,) for n in range(300)])) == 300


@suite.scenario
async def copy_in_and_out():
    async with connect() as client:
        await client.execute("CREATE TABLE copied (a int, b text, c timestamptz)")
        moment = datetime.datetime(2026, 2, 3, tzinfo=datetime.timezone.utc)
        records = [(n, f"text {n}", moment) for n in range(20000)]
        assert await client.copy_records_to_table("copied", records=records) == "COPY 20000"
        out = io.BytesIO()
        await client.copy_from_query("SELECT a, b FROM copied ORDER BY a", output=out)
        assert out.getvalue().splitlines()[777] == b"777\ttext 777"
        out.seek(0)
        await client.execute("CREATE TABLE again (a int, b text)")
        assert await client.copy_to_table("again", source=out) == "COPY 20000"
        try:
            await client.copy_to_table("again", source=io.BytesIO(b"no number\tx\n" * 50000))
            raise AssertionError("text went into a number")
        except asyncpg.InvalidTextRepresentationError:
            pass
        assert await client.fetchval("SELECT count(*) FROM again") == 20000


@suite.scenario
async def cancel_by_timeout_and_by_task():
    async with connect() as client, connect() as innocent:
        calm = asyncio.create_task(innocent.fetchval("SELECT pg_sleep(1.5)::text || 'calm'"))
        try:
            await client.fetchval("SELECT pg_sleep(30)", timeout=0.3)
            raise AssertionError("it was not cancelled")
        except asyncio.TimeoutError:
            pass
        assert await client.fetchval("SELECT 1") == 1
        task = asyncio.create_task(client.fetchval("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.3)
        task.cancel()
        try:
            await task
            raise AssertionError("it was not cancelled")
        except asyncio.CancelledError:
            pass
        assert await client.fetchval("SELECT 2") == 2
        assert await calm == "calm"


@suite.scenario
async def settings_follow():
    settings = {"application_name": "follower", "search_path": "elsewhere,public", "work_mem": "5MB"}
    async with connect(server_settings=settings) as client, connect() as other:
        await client.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.here (a int)")
        for n in range(10):
            assert await client.fetchval("SELECT count(*) FROM here") == 0
            assert await client.fetchval("SHOW application_name") == "follower"
            assert await client.fetchval("SHOW work_mem") == "5MB"
            assert await other.fetchval("SHOW work_mem") == "4MB"
            assert await other.fetchval("SELECT to_regclass('here')::text") is None
        await client.execute("SET TIME ZONE 'Asia/Tokyo'")
        assert client.get_settings().TimeZone == "Asia/Tokyo"
        assert await other.fetchval("SHOW TimeZone") != "Asia/Tokyo"
        assert await client.fetchval("SHOW TimeZone") == "Asia/Tokyo"
        # The driver's pool says this between its users.
        await client.reset()
        assert await client.fetchval("SHOW work_mem") == "5MB"
        assert await client.fetchval("SHOW TimeZone") != "Asia/Tokyo"


@suite.scenario
async def transactions_and_savepoints():
    async with connect() as client:
        await client.execute("CREATE TABLE kept (a int)")
        async with client.transaction(isolation="repeatable_read"):
            await client.execute("INSERT INTO kept VALUES ($1)", 1)
            for _ in range(3):
                try:
                    async with client.transaction():
                        await client.execute("INSERT INTO kept VALUES (2)")
                        await client.fetchval("SELECT 1/$1::int", 0)
                except asyncpg.DivisionByZeroError:
                    pass
            async with client.transaction():
                await client.execute("INSERT INTO kept VALUES (3)")
        assert [row["a"] for row in await client.fetch("SELECT a FROM kept ORDER BY a")] == [1, 3]
        async with client.transaction(readonly=True, isolation="repeatable_read"):
            assert await client.fetchval("SELECT count(*) FROM kept") == 2
            try:
                async with client.transaction():
                    await client.execute("INSERT INTO kept VALUES (4)")
                raise AssertionError("a reader wrote")
            except asyncpg.ReadOnlySQLTransactionError:
                pass
        async with client.transaction():
            assert sum([row[0] async for row in client.cursor("SELECT generate_series(1, 1000)", prefetch=70)]) == 500500


@suite.scenario
async def binary_types():
    async with connect() as client:
        values = [
            (decimal.Decimal("12345678901234567890.123456789"), "numeric"),
            (uuid.uuid4(), "uuid"),
            (datetime.datetime.now(datetime.timezone.utc), "timestamptz"),
            (datetime.timedelta(days=3, seconds=7), "interval"),
            (bytes(range(256)) * 40, "bytea"),
            ([[1, 2], [3, None]], "int[]"),
            (["a", None, "\u20ac\"{},"], "text[]"),
            (asyncpg.Range(1, 10), "int4range"),
            (ipaddress.ip_network("10.1.0.0/16"), "cidr"),
            (asyncpg.Point(1.5, 2.5), "point"),
            (asyncpg.BitString("10110"), "varbit"),
            ("{\"a\": [1, null]}", "jsonb"),
        ]
        for value, kind in values:
            assert await client.fetchval(f"SELECT $1::{kind}", value) == value, kind
        # Types of one's own are looked up by the driver with queries of its own.
        await client.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b mood)")
        assert tuple(await client.fetchval("SELECT $1::pair", (1, "happy"))) == (1, "happy")
        assert await client.fetchval("SELECT $1::mood[]", ["sad", "happy"]) == ["sad", "happy"]


@suite.scenario
async def large_rows():
    async with connect() as client:
        data = b"z" * 5_000_000
        assert await client.fetchval("SELECT $1::bytea", data) == data
        assert sum(len(row[0]) for row in await client.fetch("SELECT repeat('x', 100000) FROM generate_series(1, 50)")) == 5_000_000


@suite.scenario
async def notifications():
    async with connect() as listener, connect() as speaker:
        heard = asyncio.Queue()
        await listener.add_listener("news", lambda _connection, _pid, _channel, payload: heard.put_nowait(payload))
        for n in range(3):
            await speaker.execute("SELECT pg_notify('news', $1)", str(n))
            assert await asyncio.wait_for(heard.get(), 20) == str(n)
        await listener.reset()


@suite.scenario
async def the_drivers_own_pool():
    async with asyncpg.create_pool(DSN, min_size=4, max_size=8) as pool:
        await pool.execute("CREATE TABLE counted (a int)")

        async def work(n):
            for turn in range(20):
                async with pool.acquire() as client, client.transaction():
                    await client.execute("INSERT INTO counted VALUES ($1)", n * 100 + turn)
                assert await pool.fetchval("SELECT $1::int", n) == n
                if turn % 7 == 0:
                    async with pool.acquire() as client:
                        await client.execute("SET work_mem = '8MB'")

        await asyncio.gather(*(work(n) for n in range(16)))
        # Another session may be asked than those that wrote.
        assert await pool.fetchval("/*+ route=primary */ SELECT count(*) FROM counted") == 320
        assert await pool.fetchval("SHOW work_mem") == "4MB"


@suite.scenario
async def a_connection_that_ends_is_replaced():
    async with asyncpg.create_pool(DSN, min_size=1, max_size=1) as pool, connect() as killer:
        # Its transaction keeps it on a server of its own.
        await killer.execute("BEGIN; SELECT 1")
        for _ in range(3):
            pid = await pool.fetchval("SELECT pg_backend_pid()")
            await killer.execute("SELECT pg_terminate_backend($1)", pid)
            assert await pool.fetchval("SELECT 5") == 5, "the router replaced the server"
    for n in range(30):
        async with connect() as client:
            assert await client.fetchval("SELECT $1::int", n) == n


@suite.scenario
async def an_error_does_not_spoil_what_follows():
    async with connect() as client:
        for n in range(20):
            try:
                await client.fetchval("SELECT 1/$1::int", n % 2)
                assert n % 2
            except asyncpg.DivisionByZeroError:
                assert n % 2 == 0
            try:
                await client.fetchval("SELEC nonsense")
                raise AssertionError("nonsense was understood")
            except asyncpg.PostgresSyntaxError:
                pass
            assert await client.fetchval("SELECT $1::int", n) == n


suite.run()
