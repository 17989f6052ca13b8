"""asyncpg, which speaks the binary protocol only: prepared statements, cursors, time-outs, COPY, pools."""

import asyncio
import io
from datetime import date
from decimal import Decimal

import asyncpg

from harness import (
    ANALYST,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    HOST,
    OPTIONS,
    PLANNER,
    POSTGRES,
    PURPOSE,
    SLOW,
    WORKER,
    Soon,
    case,
    contains,
    equal,
    is_token,
    run,
    token,
)

ALL_DIVISIONS = "SELECT code, name, level, parent_code FROM divisions ORDER BY code"


def settings(caller=ANALYST, purpose=PURPOSE, **named):
    """Where and as whom to connect. asyncpg sends its settings as parameters of the start-up packet."""
    server = {"purpose": purpose} if purpose else {}
    return {
        "host": HOST,
        "port": POSTGRES,
        "user": caller,
        "password": token(caller),
        "database": DATABASE,
        "timeout": 10,
        "server_settings": server,
    } | named


async def connect(*arguments, **named):
    return await asyncpg.connect(**settings(*arguments, **named))


async def fails(kind, awaited):
    """The error of this kind that something awaited ends with."""
    try:
        found = await awaited
    except kind as error:
        return error
    raise AssertionError(f"no {kind} but {found!r}")


@case
async def rows():
    connection = await connect()
    equal([tuple(row) for row in await connection.fetch(ALL_DIVISIONS)], DIVISIONS)
    found = await connection.fetch("SELECT confirmed_date, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1")
    equal(
        [dict(row) for row in found],
        [{"confirmed_date": date(2026, 1, 5), "n": 8}, {"confirmed_date": date(2026, 1, 6), "n": 6}],
    )
    found = await connection.fetchrow("SELECT min(visited_at), min(id_no), avg(level) FROM visits, divisions")
    equal(found[0], FIRST_VISIT)
    assert is_token(found[1]), found
    equal(round(float(found[2]), 6), 4.222222)
    await connection.close()


@case
async def numbers_and_nulls():
    connection = await connect(WORKER, None)
    found = await connection.fetch(
        "SELECT temperature, symptoms, needs FROM visits WHERE temperature >= 36.9 ORDER BY 1"
    )
    equal(
        [tuple(row) for row in found],
        [(Decimal("36.9"), None, None), (Decimal("37.0"), None, None), (Decimal("37.1"), "发热", None)],
    )
    await connection.close()
    connection = await connect(PLANNER, None)
    equal(await connection.fetchval("SELECT sum(amount) FROM sales"), Decimal("166.50"))
    await connection.close()


@case
async def the_purpose_as_an_option():
    connection = await connect(server_settings={"options": OPTIONS})
    equal(await connection.fetchval("SHOW purpose"), PURPOSE)
    await connection.close()


@case
async def parameters():
    connection = await connect()
    equal(await connection.fetchval("SELECT count(*) FROM cases WHERE confirmed_date >= $1", date(2026, 1, 6)), 6)
    equal(await connection.fetchval("SELECT count(*) FROM visits WHERE visited_at <= $1", FIRST_VISIT), 1)
    equal(await connection.fetchval("SELECT count(*) FROM visits WHERE mode = $1", "入户"), 16)
    equal(await connection.fetchval("SELECT count(*) FROM divisions WHERE level = $1", 6), 3)
    equal(await connection.fetchval("SELECT count(*) FROM divisions WHERE level = $1 OR $2", 6, True), 9)
    equal(await connection.fetchval("SELECT count(*) FROM divisions WHERE parent_code = $1", None), 0)
    equal(await connection.fetchval("SELECT code FROM divisions ORDER BY code LIMIT $1", 1), "42")
    # The type that a cast gives it.
    equal(await connection.fetchval("SELECT $1::int + 1", 2), 3)
    equal(await connection.fetchval("SELECT $1::numeric(10, 2)", Decimal("1.25")), Decimal("1.25"))
    # Asked for by the client's own mistake, before anything is sent.
    await fails(
        asyncpg.DataError, connection.fetchval("SELECT count(*) FROM cases WHERE confirmed_date >= $1", "today")
    )
    await connection.close()


@case
async def arrays():
    connection = await connect()

    async def count(condition, array):
        return await connection.fetchval(f"SELECT count(*) FROM {condition}", array)

    statement = await connection.prepare("SELECT 1 FROM divisions WHERE code = ANY($1) AND level <> ALL($2)")
    equal([kind.kind for kind in statement.get_parameters()], ["array", "array"])
    equal(await count("divisions WHERE code = ANY($1)", ["42", "4201", "nowhere"]), 2)
    equal(await count("divisions WHERE code <> ALL($1)", ["42", "4201"]), 7)
    equal(await count("divisions WHERE code = ANY($1)", []), 0)
    equal(await count("divisions WHERE code = ANY($1)", ["42", None]), 1)
    equal(await count("divisions WHERE code = ANY($1)", None), 0)
    equal(await count("divisions WHERE level = ANY($1)", [1, 6]), 4)
    equal(await count("divisions WHERE level = ANY($1::int[])", [1, 6]), 4)
    equal(await count("cases WHERE confirmed_date = ANY($1)", [date(2026, 1, 6), date(2026, 1, 7)]), 6)
    equal(await count("visits WHERE visited_at = ANY($1)", [FIRST_VISIT]), 1)
    people = [row[0] for row in await connection.fetch("SELECT DISTINCT id_no FROM cases LIMIT 2")]
    listed = await connection.fetchval("SELECT count(*) FROM cases WHERE id_no IN ($1, $2)", *people)
    equal(await count("cases WHERE id_no = ANY($1)", people), listed)
    error = await fails(asyncpg.InsufficientPrivilegeError, count("divisions WHERE code > ANY($1)", ["42"]))
    contains(error.hint, "x = ANY ($1)")
    await connection.close()


@case
async def prepared_statements():
    connection = await connect()
    statement = await connection.prepare(
        "SELECT code, level, parent_code FROM divisions WHERE level >= $1 ORDER BY code"
    )
    equal([kind.name for kind in statement.get_parameters()], ["int2"])
    equal(
        [(column.name, column.type.name) for column in statement.get_attributes()],
        [("code", "text"), ("level", "int2"), ("parent_code", "text")],
    )
    for level, expected in [(6, 3), (5, 5), (1, 9), (7, 0)]:
        equal(len(await statement.fetch(level)), expected)
    await connection.close()


@case
async def cursors():
    connection = await connect()
    async with connection.transaction():
        found = [tuple(row) async for row in connection.cursor(ALL_DIVISIONS, prefetch=4)]
        equal(found, DIVISIONS)
        cursor = await connection.cursor("SELECT code FROM divisions WHERE level >= $1 ORDER BY code", 5)
        equal(len(await cursor.fetch(2)), 2)
        equal(await cursor.forward(1), 1)
        equal(len(await cursor.fetch(10)), 2)
    await connection.close()


@case
async def a_time_out_cancels():
    connection = await connect()
    with Soon():
        await fails(asyncio.TimeoutError, connection.fetch(SLOW, timeout=0.5))
        equal(await connection.fetchval("SELECT count(*) FROM divisions"), 9)
    await connection.execute("SET statement_timeout = '300ms'")
    with Soon():
        await fails(asyncpg.QueryCanceledError, connection.fetch(SLOW))
    await connection.close()


@case
async def copy_out():
    connection = await connect()
    file = io.BytesIO()
    said = await connection.copy_from_query(
        "SELECT code, level FROM divisions WHERE level < 3 ORDER BY code", output=file, format="csv", header=True
    )
    equal((said, file.getvalue()), ("COPY 2", b"code,level\n42,1\n4201,2\n"))
    await fails(
        asyncpg.InsufficientPrivilegeError,
        connection.copy_from_query("SELECT temperature FROM visits", output=io.BytesIO()),
    )
    equal(await connection.fetchval("SELECT 1"), 1)
    await connection.close()


@case
async def types_are_looked_up():
    connection = await connect()
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=float, format="text")
    equal(await connection.fetchval("SELECT 1.5::numeric(3, 1)"), 1.5)
    await connection.close()


@case
async def refusals():
    connection = await connect()
    error = await fails(asyncpg.InsufficientPrivilegeError, connection.fetch("SELECT temperature FROM visits"))
    contains(error.hint, "avg(temperature)")
    await fails(asyncpg.UndefinedTableError, connection.fetch("SELECT 1 FROM nope"))
    await fails(asyncpg.UndefinedColumnError, connection.fetch("SELECT phone FROM residents"))
    await fails(asyncpg.PostgresSyntaxError, connection.fetch("SELEC 1"))
    async with connection.transaction():
        try:
            async with connection.transaction():
                await connection.fetch("SELECT 1 FROM nope")
        except asyncpg.UndefinedTableError:
            pass
        equal(await connection.fetchval("SELECT count(*) FROM divisions"), 9)
    await connection.close()
    await fails(asyncpg.InvalidPasswordError, connect(password="ghub_wrong"))


@case
async def notices():
    connection, heard = await connect(), []
    connection.add_log_listener(lambda _, message: heard.append(message.message))
    await connection.fetch("SELECT count(temperature) FROM visits")
    await asyncio.sleep(0)
    assert any("protected" in text for text in heard), heard
    await connection.close()


@case
async def a_pool():
    async with asyncpg.create_pool(min_size=2, max_size=4, **settings()) as pool:

        async def count():
            async with pool.acquire() as connection:
                return await connection.fetchval("SELECT count(*) FROM divisions")

        equal(await asyncio.gather(*(count() for _ in range(12))), [9] * 12)
        async with pool.acquire() as connection:
            await connection.execute("SET purpose = 'supply-planning'")
        # Reset between two users, to what the connection began with.
        for _ in range(4):
            async with pool.acquire() as connection:
                equal(await connection.fetchval("SHOW purpose"), PURPOSE)


run("asyncpg", around=lambda function: asyncio.run(asyncio.wait_for(function(), 60)))
