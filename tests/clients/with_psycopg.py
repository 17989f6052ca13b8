"""psycopg 3: text and binary, named cursors, pipelines, prepared statements, COPY, cancel, time-outs, notices."""

import os
import socket
import threading
import time
from datetime import date
from decimal import Decimal

import psycopg
from psycopg import pq
from psycopg.types import TypeInfo

from harness import (
    ANALYST,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    HOST,
    OPTIONS,
    PLANNER,
    POSTGRES,
    RESIDENTS,
    SLOW,
    WORKER,
    Soon,
    case,
    contains,
    equal,
    is_token,
    raises,
    run,
    token,
)

ALL_DIVISIONS = "SELECT code, name, level, parent_code FROM divisions ORDER BY code"


def connect(caller=ANALYST, options=OPTIONS, **named):
    """A connection where every statement stands by itself."""
    named = {"autocommit": True, "connect_timeout": 10} | named
    return psycopg.connect(
        host=HOST,
        port=POSTGRES,
        user=caller,
        password=named.pop("password", None) or token(caller),
        dbname=DATABASE,
        options=options,
        **named,
    )


@case
def rows_as_text():
    with connect() as connection:
        equal(connection.execute(ALL_DIVISIONS).fetchall(), DIVISIONS)
        equal(
            connection.execute("SELECT confirmed_date, count(*) FROM cases GROUP BY 1 ORDER BY 1").fetchall(),
            [(date(2026, 1, 5), 8), (date(2026, 1, 6), 6)],
        )


@case
def rows_as_binary():
    with connect() as connection, connection.cursor(binary=True) as cursor:
        equal(cursor.execute(ALL_DIVISIONS).fetchall(), DIVISIONS)
        found = cursor.execute(
            "SELECT id_no, birth_date, confirmed_date FROM cases ORDER BY birth_date LIMIT 1"
        ).fetchone()
        assert is_token(found[0]), found
        equal(found[1:], (date(1950, 1, 1), date(2026, 1, 5)))


def values(binary):
    with connect() as connection, connection.cursor(binary=binary) as cursor:
        cursor.execute("SELECT min(visited_at), count(*), count(*) > 3 FROM visits")
        equal(cursor.fetchone(), (FIRST_VISIT, 16, True))
        equal([column.type_code for column in cursor.description], [1184, 20, 16])
        cursor.execute(
            "SELECT avg(level), max(level), NULL::text, 'x', DATE '2026-01-05',"
            " TIMESTAMP '2026-01-05 07:30:00.25' FROM divisions"
        )
        found = cursor.fetchone()
        equal(round(float(found[0]), 6), 4.222222)
        equal(found[1:5], (6, None, "x", date(2026, 1, 5)))
        equal(found[5].isoformat(), "2026-01-05T07:30:00.250000")
        equal([column.type_code for column in cursor.description], [701, 21, 25, 25, 1082, 1114])
    with connect(WORKER, None) as connection, connection.cursor(binary=binary) as cursor:
        cursor.execute("SELECT temperature, symptoms FROM visits WHERE symptoms IS NOT NULL")
        equal(cursor.fetchall(), [(Decimal("37.1"), "发热")])
        equal([column.type_code for column in cursor.description], [1700, 25])
    with connect(PLANNER, None) as connection, connection.cursor(binary=binary) as cursor:
        equal(cursor.execute("SELECT sum(amount), sum(qty), min(amount) FROM sales").fetchone()[0], Decimal("166.50"))


@case
def values_as_text():
    values(False)


@case
def values_as_binary():
    values(True)


@case
def parameters():
    with connect() as connection:

        def count(sql, *parameters):
            return connection.execute(sql, parameters).fetchone()[0]

        equal(count("SELECT count(*) FROM visits WHERE mode = %s", "入户"), 16)
        equal(count("SELECT count(*) FROM cases WHERE confirmed_date >= %s", date(2026, 1, 6)), 6)
        equal(count("SELECT count(*) FROM cases WHERE confirmed_date >= %s", "2026-01-06"), 6)
        equal(count("SELECT count(*) FROM visits WHERE visited_at <= %s", FIRST_VISIT), 1)
        equal(count("SELECT code FROM divisions WHERE level = %s", 3), "420191")
        equal(count("SELECT count(*) FROM divisions WHERE level > %s", 4.5), 5)
        equal(count("SELECT count(*) FROM divisions WHERE level > %s", Decimal("4.5")), 5)
        equal(count("SELECT count(*) FROM divisions WHERE code IN (%s, %s)", "42", "4201"), 2)
        equal(count("SELECT count(*) FROM divisions WHERE parent_code = %s", None), 0)
        equal(count("SELECT count(*) FROM divisions WHERE level = %s OR %s", 3, True), 9)
        equal(count("SELECT code FROM divisions ORDER BY code LIMIT %s", 1), "42")
        equal(count("SELECT count(*) FROM divisions WHERE name = %s", 'it\'s \\ "quoted"'), 0)
        person = count("SELECT min(id_no) FROM cases")
        equal(count("SELECT count(*) FROM cases WHERE id_no = %s", person), 1)
        equal(count("SELECT count(*) FROM visits WHERE id_no = %s", person), 1)
        equal(count("SELECT count(*) FROM cases WHERE id_no = %s", "42019119500110001X"), 0)
        equal(count("SELECT count(*) FROM cases WHERE confirmed_date = %b", date(2026, 1, 6)), 6)
        equal(count("SELECT count(*) FROM visits WHERE visited_at <= %b", FIRST_VISIT), 1)
        equal(count("SELECT code FROM divisions WHERE level = %b", 3), "420191")


@case
def arrays():
    for binary in (False, True):
        mark = "%b" if binary else "%s"
        with connect() as connection:

            def count(condition, array):
                sql = f"SELECT count(*) FROM {condition.replace('%s', mark)}"
                return connection.execute(sql, (array,)).fetchone()[0]

            equal(count("divisions WHERE code = ANY(%s)", ["42", "4201", "nowhere"]), 2)
            equal(count("divisions WHERE code <> ALL(%s)", ["42", "4201"]), 7)
            equal(count("divisions WHERE code = ANY(%s::text[])", ['it\'s', '"quoted"', "42"]), 1)
            equal(count("divisions WHERE code = ANY(%s)", []), 0)
            equal(count("divisions WHERE code <> ALL(%s)", []), 9)
            equal(count("divisions WHERE code = ANY(%s)", ["42", None]), 1)
            equal(count("divisions WHERE code = ANY(%s)", None), 0)
            equal(count("divisions WHERE level = ANY(%s)", [1, 6]), 4)
            equal(count("cases WHERE confirmed_date = ANY(%s)", [date(2026, 1, 6), date(2026, 1, 7)]), 6)
            equal(count("visits WHERE visited_at = ANY(%s)", [FIRST_VISIT]), 1)
            people = [row[0] for row in connection.execute("SELECT DISTINCT id_no FROM cases LIMIT 2").fetchall()]
            equal(
                count("cases WHERE id_no = ANY(%s)", people),
                connection.execute("SELECT count(*) FROM cases WHERE id_no IN (%s, %s)", people).fetchone()[0],
            )
            error = raises(psycopg.Error, count, "divisions WHERE code > ANY(%s)", ["42"])
            equal(error.sqlstate, "42501")
            contains(error.diag.message_hint, "x = ANY ($1)")
    with connect() as connection, psycopg.ClientCursor(connection) as cursor:
        for codes, expected in [(["42", "4201"], 2), ([], 0)]:
            cursor.execute("SELECT count(*) FROM divisions WHERE code = ANY(%s)", (codes,))
            equal(cursor.fetchone(), (expected,))


@case
def prepared_statements():
    with connect(prepare_threshold=2) as connection:
        for level, expected in [(3, 1), (6, 3), (5, 2), (9, 0), (3, 1)]:
            found = connection.execute("SELECT count(*) FROM divisions WHERE level = %s", (level,)).fetchone()
            equal(found, (expected,))
        for _ in range(3):
            found = connection.execute(
                "SELECT count(*) FROM cases WHERE confirmed_date = %s", (date(2026, 1, 5),), prepare=True
            )
            equal(found.fetchone(), (8,))
        connection.execute("DEALLOCATE ALL")
    with connect() as connection, connection.cursor() as cursor:
        cursor.executemany("SELECT code FROM divisions WHERE level = %s", [(1,), (2,), (3,)], returning=True)
        found = []
        while True:
            found += cursor.fetchall()
            if not cursor.nextset():
                break
        equal(found, [("42",), ("4201",), ("420191",)])


@case
def named_cursors():
    for binary in (False, True):
        with connect(autocommit=False) as connection:
            with connection.cursor(name="walk", binary=binary) as cursor:
                cursor.itersize = 4
                cursor.execute(ALL_DIVISIONS)
                equal(cursor.fetchone(), DIVISIONS[0])
                equal(cursor.fetchmany(2), DIVISIONS[1:3])
                equal(list(cursor), DIVISIONS[3:])
                equal([column.name for column in cursor.description], ["code", "name", "level", "parent_code"])
            with connection.cursor(name="with a parameter", binary=binary) as cursor:
                cursor.execute("SELECT code FROM divisions WHERE level = %s ORDER BY 1", (6,))
                equal(cursor.fetchall(), [row[:1] for row in DIVISIONS if row[2] == 6])


@case
def pipelines():
    with connect() as connection, connection.pipeline():
        found = [connection.execute("SELECT count(*) FROM divisions WHERE level = %s", (level,)) for level in (1, 5, 6)]
        equal([cursor.fetchone()[0] for cursor in found], [1, 2, 3])

    def failing():
        with connection.pipeline():
            connection.execute("SELECT 1 FROM nope")

    with connect() as connection:
        raises(psycopg.errors.UndefinedTable, failing)
        equal(connection.execute("SELECT count(*) FROM divisions").fetchone(), (9,))


@case
def copy_out():
    with connect() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY ({ALL_DIVISIONS}) TO STDOUT") as copy:
            copy.set_types(["text", "text", "int2", "text"])
            equal(list(copy.rows()), DIVISIONS)
        with cursor.copy(f"COPY ({ALL_DIVISIONS}) TO STDOUT (FORMAT BINARY)") as copy:
            copy.set_types(["text", "text", "int2", "text"])
            equal(list(copy.rows()), DIVISIONS)
        with cursor.copy(
            "COPY (SELECT code, parent_code FROM divisions ORDER BY code LIMIT 2)"
            " TO STDOUT (FORMAT CSV, HEADER, NULL '-')"
        ) as copy:
            equal(b"".join(bytes(part) for part in copy), b"code,parent_code\n42,-\n4201,42\n")
        equal(
            raises(psycopg.Error, copy_all, cursor, "COPY (SELECT temperature FROM visits) TO STDOUT").sqlstate, "42501"
        )
        equal(raises(psycopg.Error, copy_all, cursor, "COPY (SELECT 1 FROM nope) TO STDOUT").sqlstate, "42P01")
        equal(cursor.execute("SELECT count(*) FROM divisions").fetchone(), (9,))


def copy_all(cursor, sql):
    with cursor.copy(sql) as copy:
        return b"".join(bytes(part) for part in copy)


@case
def nothing_is_written():
    with connect() as connection:
        for sql in (
            "COPY cases FROM STDIN",
            "INSERT INTO cases VALUES (1)",
            "DELETE FROM cases",
            "CREATE TABLE t (a int)",
        ):
            error = raises(psycopg.Error, connection.execute, sql)
            assert error.sqlstate in ("42501", "0A000", "25006", "42601"), (sql, error.sqlstate, str(error))
            equal(connection.info.transaction_status, pq.TransactionStatus.IDLE)


@case
def cancel():
    with connect() as connection:
        for stop in (connection.cancel_safe, connection.cancel):
            timer = threading.Timer(0.5, stop)
            timer.start()
            with Soon():
                error = raises(psycopg.Error, connection.execute, SLOW)
            equal(error.sqlstate, "57014")
            timer.join()
            equal(connection.execute("SELECT count(*) FROM divisions").fetchone(), (9,))


@case
def time_out_of_statements():
    with connect() as connection:
        connection.execute("SET statement_timeout = '400ms'")
        equal(connection.execute("SHOW statement_timeout").fetchone(), ("400ms",))
        with Soon():
            equal(raises(psycopg.errors.QueryCanceled, connection.execute, SLOW).sqlstate, "57014")
        with connection.cursor(binary=True) as cursor, Soon():
            equal(raises(psycopg.errors.QueryCanceled, cursor.execute, SLOW).sqlstate, "57014")
        connection.execute("RESET statement_timeout")
        equal(connection.execute("SELECT count(*) FROM divisions").fetchone(), (9,))


@case
def who_hangs_up_harms_nobody():
    # The hub lets an answer that nobody waits for come to its end; here that is soon.
    connection = connect(options=f"{OPTIONS} -c statement_timeout=2s")
    thread = threading.Thread(target=lambda: raises(psycopg.Error, connection.execute, SLOW))
    thread.start()
    time.sleep(0.3)
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    with connect() as other:
        equal(other.execute("SELECT count(*) FROM divisions").fetchone(), (9,))
    thread.join()


@case
def notices():
    heard = []
    with connect() as connection:
        connection.add_notice_handler(
            lambda diagnostic: heard.append((diagnostic.severity, diagnostic.message_primary))
        )
        connection.execute("SELECT count(*) FROM divisions")
        equal(heard, [])
        (found,) = connection.execute("SELECT count(temperature) FROM visits").fetchone()
        # Rows of sixteen people, give or take four: their noise is not that which decides whether there is a number.
        assert found is None or 12 <= found <= 20, found
        assert any(severity == "NOTICE" and "protected" in text for severity, text in heard), heard


@case
def refusals():
    with connect() as connection:
        error = raises(psycopg.errors.InsufficientPrivilege, connection.execute, "SELECT temperature FROM visits")
        contains(error.diag.message_primary, "`temperature` is sealed")
        contains(error.diag.message_detail, "sealed-field")
        contains(error.diag.message_hint, "avg(temperature)")
        raises(psycopg.errors.UndefinedColumn, connection.execute, "SELECT phone FROM residents")
        raises(psycopg.errors.UndefinedTable, connection.execute, "SELECT 1 FROM nope WHERE 1 = %s", (1,))
        raises(psycopg.errors.SyntaxError, connection.execute, "SELEC 1")
        equal(connection.execute("SELECT 1").fetchone(), (1,))
    with connect(PLANNER, None) as connection:
        raises(psycopg.errors.UndefinedTable, connection.execute, "SELECT 1 FROM residents")
        raises(psycopg.errors.UndefinedTable, connection.execute, "SELECT 1 FROM community.residents")


@case
def purposes():
    with connect(options=None) as connection:
        error = raises(psycopg.Error, connection.execute, "SELECT count(*) FROM cases")
        equal(error.sqlstate, "22023")
        contains(f"{error} {error.diag.message_hint}", "supply-planning")
        connection.execute("SET purpose = 'epidemiology'")
        equal(connection.execute("SELECT count(*) FROM cases").fetchone(), (14,))
        equal(raises(psycopg.Error, connection.execute, "SET purpose = 'audit'").sqlstate, "22023")
        equal(connection.execute("SHOW purpose").fetchone(), ("epidemiology",))
        connection.execute("SELECT set_config('purpose', 'supply-planning', false)")
        equal(connection.execute("SELECT current_setting('purpose')").fetchone(), ("supply-planning",))
        equal(raises(psycopg.Error, connection.execute, "SELECT special_group FROM residents").sqlstate, "42501")


@case
def transactions():
    with connect(autocommit=False) as connection:
        equal(connection.execute("SELECT 1").fetchone(), (1,))
        equal(connection.info.transaction_status, pq.TransactionStatus.INTRANS)
        raises(psycopg.errors.UndefinedTable, connection.execute, "SELECT 1 FROM nope")
        equal(connection.info.transaction_status, pq.TransactionStatus.INERROR)
        raises(psycopg.errors.InFailedSqlTransaction, connection.execute, "SELECT 1")
        connection.rollback()
        equal(connection.info.transaction_status, pq.TransactionStatus.IDLE)
        with connection.transaction():
            try:
                with connection.transaction():
                    connection.execute("SELECT 1 FROM nope")
            except psycopg.errors.UndefinedTable:
                pass
            equal(connection.execute("SELECT count(*) FROM divisions").fetchone(), (9,))


@case
def facts_of_the_connection():
    with connect(application_name="a test of gridhub") as connection:
        assert 160000 <= connection.info.server_version < 170000, connection.info.server_version
        equal(connection.info.encoding, "utf-8")
        equal(connection.info.user, ANALYST)
        equal(connection.info.parameter_status("is_superuser"), "off")
        equal(connection.info.parameter_status("standard_conforming_strings"), "on")
        equal(connection.info.parameter_status("integer_datetimes"), "on")
        equal(connection.execute("SHOW application_name").fetchone(), ("a test of gridhub",))
    error = raises(psycopg.OperationalError, connect, password="ghub_wrong")
    contains(str(error), "password authentication failed")


@case
def types_are_looked_up():
    with connect() as connection:
        found = TypeInfo.fetch(connection, "timestamptz")
        equal((found.oid, found.array_oid), (1184, 1185))
        equal(TypeInfo.fetch(connection, "hstore"), None)
        found = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
            ("community", "residents"),
        ).fetchall()
        equal(dict(found), RESIDENTS)


@case
def several_statements_at_once():
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1; SELECT count(*) FROM divisions; SET purpose = 'epidemiology'")
        equal(cursor.fetchone(), (1,))
        assert cursor.nextset()
        equal(cursor.fetchone(), (9,))
        assert cursor.nextset()
        equal(cursor.statusmessage, "SET")
        cursor.execute("")
        equal(cursor.description, None)


run("psycopg 3")
