"""The ADBC driver for PostgreSQL, which copies answers out in the binary form and makes Arrow of them."""

from datetime import date
from urllib.parse import quote

import pyarrow
from adbc_driver_manager import Error
from adbc_driver_postgresql import dbapi

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
    WORKER,
    case,
    contains,
    equal,
    is_token,
    raises,
    run,
    token,
)


def connect(caller=ANALYST, options=OPTIONS, password=None):
    address = f"postgresql://{caller}:{quote(password or token(caller))}@{HOST}:{POSTGRES}/{DATABASE}"
    return dbapi.connect(address + (f"?options={quote(options)}" if options else ""), autocommit=True)


def table(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetch_arrow_table()


@case
def arrow_tables():
    with connect() as connection:
        found = table(connection, "SELECT code, name, level, parent_code FROM divisions ORDER BY code")
        equal([tuple(row.values()) for row in found.to_pylist()], DIVISIONS)
        equal([str(field.type) for field in found.schema], ["string", "string", "int16", "string"])
        found = table(connection, "SELECT confirmed_date, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1")
        equal(found.to_pydict(), {"confirmed_date": [date(2026, 1, 5), date(2026, 1, 6)], "n": [8, 6]})
        found = table(connection, "SELECT * FROM residents")
        equal(found.schema.names, list(RESIDENTS))
        equal(found.num_rows, 15)
        assert all(is_token(value) for value in found["id_no"].to_pylist())
        equal(found["special_group"].null_count, 11)
        equal(found.schema.field("birth_date").type, pyarrow.date32())


@case
def numbers_and_times():
    with connect() as connection:
        found = table(connection, "SELECT min(visited_at) AS first FROM visits")
        equal(found["first"].to_pylist(), [FIRST_VISIT])
    with connect(WORKER, None) as connection:
        found = table(connection, "SELECT temperature FROM visits WHERE symptoms IS NOT NULL")
        equal([str(value) for value in found["temperature"].to_pylist()], ["37.1"])
    with connect(PLANNER, None) as connection:
        found = table(connection, "SELECT sum(amount) AS amount FROM sales")
        equal([str(value) for value in found["amount"].to_pylist()], ["166.50"])


@case
def parameters():
    with connect() as connection:
        equal(table(connection, "SELECT count(*) AS n FROM visits WHERE mode = $1", ("入户",)).to_pydict(), {"n": [16]})
        equal(table(connection, "SELECT count(*) AS n FROM divisions WHERE level = $1", (6,)).to_pydict(), {"n": [3]})
        found = table(connection, "SELECT count(*) AS n FROM cases WHERE confirmed_date = $1", (date(2026, 1, 6),))
        equal(found.to_pydict(), {"n": [6]})


@case
def objects_of_the_catalogue():
    with connect() as connection:
        found = connection.adbc_get_objects(depth="columns", catalog_filter=DATABASE).read_all().to_pylist()
        equal([catalogue["catalog_name"] for catalogue in found], [DATABASE])
        schemas = {schema["db_schema_name"]: schema["db_schema_tables"] for schema in found[0]["catalog_db_schemas"]}
        tables = {found["table_name"]: found for found in schemas["community"]}
        equal(set(tables), {"residents", "visits"})
        columns = sorted(tables["residents"]["table_columns"], key=lambda column: column["ordinal_position"])
        equal([column["column_name"] for column in columns], list(RESIDENTS))
    with connect(PLANNER, None) as connection:
        found = str(connection.adbc_get_objects(depth="tables").read_all().to_pylist())
        contains(found, "sales")
        assert "residents" not in found, found


@case
def schema_of_a_table():
    with connect() as connection:
        found = connection.adbc_get_table_schema("residents", db_schema_filter="community")
        equal(found.names, list(RESIDENTS))
        equal(found.field("birth_date").type, pyarrow.date32())
        raises(Error, connection.adbc_get_table_schema, "nope", db_schema_filter="community")


@case
def facts_of_the_connection():
    with connect() as connection:
        found = connection.adbc_get_info()
        equal(found["vendor_name"], "PostgreSQL")
        contains(found["vendor_version"], "16")


@case
def refusals():
    with connect() as connection:
        error = raises(Error, table, connection, "SELECT temperature FROM visits")
        contains(str(error), "sealed")
        equal(error.sqlstate, "42501")
        equal(raises(Error, table, connection, "SELECT 1 FROM nope").sqlstate, "42P01")
        equal(table(connection, "SELECT count(*) AS n FROM divisions").to_pydict(), {"n": [9]})
    raises(Error, connect, password="ghub_wrong")


@case
def nothing_is_ingested():
    rows = pyarrow.table({"code": ["43"], "name": ["x"], "level": [1], "parent_code": [None]})
    with connect() as connection, connection.cursor() as cursor:
        for mode in ("append", "create", "replace"):
            raises(Error, cursor.adbc_ingest, "divisions", rows, mode=mode, db_schema_name="platform")


run("ADBC PostgreSQL")
