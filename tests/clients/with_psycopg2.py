"""psycopg 2: named cursors, copy_expert, notices, errors."""

import io
import threading
from datetime import date
from decimal import Decimal

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from harness import (
    ANALYST,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    HOST,
    OPTIONS,
    PLANNER,
    POSTGRES,
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
    connection = psycopg2.connect(
        host=HOST,
        port=POSTGRES,
        user=caller,
        password=named.pop("password", None) or token(caller),
        dbname=DATABASE,
        options=options,
        connect_timeout=10,
        **named,
    )
    connection.autocommit = True
    return connection


def ask(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


@case
def rows():
    connection = connect()
    equal(ask(connection, ALL_DIVISIONS), DIVISIONS)
    equal(
        ask(connection, "SELECT confirmed_date, count(*) FROM cases GROUP BY 1 ORDER BY 1"),
        [(date(2026, 1, 5), 8), (date(2026, 1, 6), 6)],
    )
    equal(ask(connection, "SELECT min(visited_at) FROM visits"), [(FIRST_VISIT,)])
    equal(
        ask(connect(WORKER, None), "SELECT temperature, needs FROM visits WHERE symptoms IS NOT NULL"),
        [(Decimal("37.1"), None)],
    )
    assert all(is_token(row[0]) for row in ask(connection, "SELECT id_no FROM residents"))


@case
def parameters():
    connection = connect()
    equal(ask(connection, "SELECT count(*) FROM cases WHERE confirmed_date = %s", (date(2026, 1, 6),)), [(6,)])
    equal(ask(connection, "SELECT count(*) FROM visits WHERE mode = %(mode)s", {"mode": "入户"}), [(16,)])
    equal(ask(connection, "SELECT count(*) FROM visits WHERE visited_at <= %s", (FIRST_VISIT,)), [(1,)])
    equal(ask(connection, "SELECT count(*) FROM divisions WHERE code IN %s", (("42", "4201"),)), [(2,)])
    equal(ask(connection, "SELECT count(*) FROM divisions WHERE code = ANY(%s)", (["42", "4201"],)), [(2,)])
    equal(ask(connection, "SELECT count(*) FROM divisions WHERE code <> ALL(%s)", ([],)), [(9,)])
    equal(ask(connection, "SELECT count(*) FROM cases WHERE confirmed_date = ANY(%s)", ([date(2026, 1, 6)],)), [(6,)])
    equal(ask(connection, "SELECT count(*) FROM divisions WHERE name = %s", ("it's \\ quoted",)), [(0,)])
    equal(ask(connection, "SELECT count(*) FROM divisions WHERE parent_code = %s", (None,)), [(0,)])


@case
def named_cursors():
    connection = connect()
    connection.autocommit = False
    with connection, connection.cursor(name="walk") as cursor:
        cursor.itersize = 4
        cursor.execute(ALL_DIVISIONS)
        equal(list(cursor), DIVISIONS)
    with connection, connection.cursor(name="walk") as cursor:
        cursor.execute(ALL_DIVISIONS)
        equal(cursor.fetchmany(2), DIVISIONS[:2])
        equal(cursor.fetchone(), DIVISIONS[2])


@case
def rows_by_name():
    with connect().cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute("SELECT code, level FROM divisions ORDER BY code LIMIT 1")
        equal([dict(row) for row in cursor], [{"code": "42", "level": 1}])


@case
def copy_out():
    connection, file = connect(), io.StringIO()
    with connection.cursor() as cursor:
        cursor.copy_expert(
            "COPY (SELECT code, level FROM divisions ORDER BY code LIMIT 2) TO STDOUT WITH CSV HEADER", file
        )
        equal(file.getvalue(), "code,level\n42,1\n4201,2\n")
        error = raises(
            psycopg2.Error, cursor.copy_expert, "COPY (SELECT temperature FROM visits) TO STDOUT", io.StringIO()
        )
        equal(error.pgcode, "42501")
        error = raises(psycopg2.Error, cursor.copy_expert, "COPY cases FROM STDIN", io.StringIO("1\n"))
        assert error.pgcode in ("42501", "0A000", "25006"), error.pgcode
    equal(ask(connection, "SELECT 1"), [(1,)])


@case
def notices():
    connection = connect()
    ask(connection, "SELECT count(temperature) FROM visits")
    assert any("protected" in notice for notice in connection.notices), connection.notices


@case
def refusals():
    connection = connect()
    error = raises(psycopg2.errors.InsufficientPrivilege, ask, connection, "SELECT temperature FROM visits")
    contains(error.diag.message_hint, "avg(temperature)")
    raises(psycopg2.errors.UndefinedTable, ask, connection, "SELECT 1 FROM nope")
    raises(psycopg2.errors.UndefinedColumn, ask, connection, "SELECT name FROM residents")
    raises(psycopg2.errors.UndefinedTable, ask, connect(PLANNER, None), "SELECT 1 FROM visits")
    contains(str(raises(psycopg2.OperationalError, connect, password="ghub_wrong")), "password authentication failed")


@case
def cancel():
    connection = connect()
    timer = threading.Timer(0.5, connection.cancel)
    timer.start()
    with Soon():
        equal(raises(psycopg2.errors.QueryCanceled, ask, connection, SLOW).pgcode, "57014")
    timer.join()
    equal(ask(connection, "SELECT 1"), [(1,)])


@case
def transactions():
    connection = connect()
    connection.autocommit = False
    raises(psycopg2.errors.UndefinedTable, ask, connection, "SELECT 1 FROM nope")
    raises(psycopg2.errors.InFailedSqlTransaction, ask, connection, "SELECT 1")
    connection.rollback()
    equal(ask(connection, "SELECT 1"), [(1,)])
    connection.commit()
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    equal(ask(connection, "SELECT 1"), [(1,)])
    connection.rollback()
    connection.reset()
    equal(ask(connection, "SHOW purpose"), [("epidemiology",)])


@case
def facts_of_the_connection():
    connection = connect()
    assert 160000 <= connection.server_version < 170000, connection.server_version
    equal(connection.encoding, "UTF8")
    connection.set_client_encoding("UTF8")
    equal(connection.get_parameter_status("session_authorization"), ANALYST)


run("psycopg 2")
