"""psqlodbc, Debian's, by pyodbc: what spreadsheets and Power BI come through."""

import os
from datetime import date
from decimal import Decimal

import pyodbc

from harness import (
    ANALYST,
    CA,
    DATABASE,
    DIVISIONS,
    HOST,
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

# The driver's file, so that nothing has to be registered.
DRIVER = os.environ["GRIDHUB_ODBC_DRIVER"]


def connect(caller=ANALYST, purpose="epidemiology", **settings):
    settings = (
        {
            "DRIVER": DRIVER,
            "SERVER": HOST,
            "PORT": POSTGRES,
            "DATABASE": DATABASE,
            "UID": caller,
            "PWD": token(caller),
            "SSLmode": "verify-full" if CA else "prefer",
        }
        | ({"ConnSettings": f"SET purpose = '{purpose}'"} if purpose else {})
        | settings
    )
    text = ";".join(
        f"{name}={{{value}}}" if name == "ConnSettings" else f"{name}={value}" for name, value in settings.items()
    )
    return pyodbc.connect(text, autocommit=True, timeout=10)


def ask(connection, sql, *parameters):
    return [tuple(row) for row in connection.cursor().execute(sql, *parameters).fetchall()]


@case
def rows():
    with connect() as connection:
        equal(ask(connection, "SELECT code, name, level, parent_code FROM divisions ORDER BY code"), DIVISIONS)
        equal(
            ask(connection, "SELECT confirmed_date, count(*) FROM cases GROUP BY 1 ORDER BY 1"),
            [(date(2026, 1, 5), 8), (date(2026, 1, 6), 6)],
        )
        assert all(is_token(row[0]) for row in ask(connection, "SELECT id_no FROM residents"))
    with connect(WORKER, None) as connection:
        equal(
            ask(connection, "SELECT temperature, needs FROM visits WHERE symptoms IS NOT NULL"),
            [(Decimal("37.1"), None)],
        )


@case
def parameters():
    with connect() as connection:
        equal(ask(connection, "SELECT count(*) FROM visits WHERE mode = ?", "入户"), [(16,)])
        equal(ask(connection, "SELECT count(*) FROM cases WHERE confirmed_date = ?", date(2026, 1, 6)), [(6,)])
        equal(ask(connection, "SELECT count(*) FROM divisions WHERE level = ?", 6), [(3,)])
        equal(ask(connection, "SELECT count(*) FROM divisions WHERE parent_code = ?", None), [(0,)])


@case
def parameters_written_by_the_driver():
    with connect(UseServerSidePrepare=0) as connection:
        equal(ask(connection, "SELECT count(*) FROM cases WHERE confirmed_date = ?", date(2026, 1, 6)), [(6,)])
        equal(ask(connection, "SELECT count(*) FROM visits WHERE mode = ?", "入户"), [(16,)])


@case
def rows_in_parts():
    with connect(UseDeclareFetch=1, Fetch=4) as connection:
        equal(ask(connection, "SELECT code FROM divisions ORDER BY code"), [row[:1] for row in DIVISIONS])


@case
def tables():
    with connect() as connection:
        found = {(row.table_schem, row.table_name) for row in connection.cursor().tables(tableType="TABLE")}
        for name in (("community", "residents"), ("community", "visits"), ("cdc", "cases"), ("platform", "divisions")):
            contains(found, name)
    with connect(PLANNER, None) as connection:
        found = {row.table_name for row in connection.cursor().tables()}
        contains(found, "sales")
        assert "residents" not in found, found


@case
def columns():
    with connect() as connection:
        found = {
            row.column_name: row.type_name for row in connection.cursor().columns(schema="community", table="residents")
        }
        equal(
            found, {name: kind.replace("timestamp with time zone", "timestamptz") for name, kind in RESIDENTS.items()}
        )
        equal(list(connection.cursor().foreignKeys(table="residents", schema="community")), [])
        list(connection.cursor().primaryKeys(table="residents", schema="community"))
        list(connection.cursor().statistics(table="residents", schema="community"))
        contains([row.type_name for row in connection.cursor().getTypeInfo()], "text")
        contains(connection.getinfo(pyodbc.SQL_DBMS_VER), "16")


@case
def refusals():
    with connect() as connection:
        error = raises(pyodbc.Error, ask, connection, "SELECT temperature FROM visits")
        equal(error.args[0], "42501")
        contains(error.args[1], "sealed")
        equal(raises(pyodbc.Error, ask, connection, "SELECT 1 FROM nope").args[0], "42P01")
        equal(ask(connection, "SELECT 1"), [(1,)])
        raises(pyodbc.Error, ask, connection, "INSERT INTO cases VALUES (1)")
    raises(pyodbc.Error, connect, PWD="ghub_wrong")


@case
def a_time_out():
    with connect() as connection:
        # The driver knows no time-out of its own for a connection.
        connection.execute("SET statement_timeout = 500")
        with Soon():
            equal(raises(pyodbc.Error, ask, connection, SLOW).args[0], "57014")
        equal(ask(connection, "SELECT count(*) FROM divisions"), [(9,)])


run("ODBC")
