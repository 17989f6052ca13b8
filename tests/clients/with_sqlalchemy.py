"""SQLAlchemy with either psycopg, and pandas over it: what notebooks and BI tools do."""

from datetime import date

import pandas
import sqlalchemy
from sqlalchemy import MetaData, Table, func, inspect, select, text

from harness import (
    AGENCIES,
    ANALYST,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    HOST,
    OPTIONS,
    PLANNER,
    POSTGRES,
    RESIDENTS,
    case,
    contains,
    equal,
    is_token,
    raises,
    run,
    token,
)


def engine(driver="psycopg", caller=ANALYST, options=OPTIONS):
    address = sqlalchemy.URL.create(
        f"postgresql+{driver}",
        caller,
        token(caller),
        HOST,
        POSTGRES,
        DATABASE,
        query={"options": options} if options else {},
    )
    return sqlalchemy.create_engine(address)


def both(function):
    """The case once with each driver."""
    for driver in ("psycopg", "psycopg2"):
        found = engine(driver)
        function(found)
        found.dispose()


@case
def rows():
    def check(engine):
        with engine.connect() as connection:
            found = connection.execute(text("SELECT code, name, level, parent_code FROM divisions ORDER BY code"))
            equal([tuple(row) for row in found], DIVISIONS)
            found = connection.execute(
                text("SELECT count(*) FROM cases WHERE confirmed_date = :day"), {"day": date(2026, 1, 6)}
            )
            equal(found.scalar(), 6)
            equal(connection.execute(text("SELECT min(visited_at) FROM visits")).scalar(), FIRST_VISIT)

    both(check)


@case
def names():
    def check(engine):
        seen = inspect(engine)
        assert AGENCIES <= set(seen.get_schema_names()), seen.get_schema_names()
        equal(sorted(seen.get_table_names(schema="community")), ["residents", "visits"])
        equal(seen.get_view_names(schema="community"), [])
        equal(seen.default_schema_name, "public")
        assert seen.has_table("residents", schema="community")
        assert not seen.has_table("nope", schema="community")

    both(check)
    seen = inspect(engine(caller=PLANNER, options=None))
    assert not seen.has_table("residents", schema="community")
    assert "hospital" not in seen.get_schema_names(), seen.get_schema_names()


@case
def columns():
    def check(engine):
        seen = inspect(engine)
        found = {column["name"]: str(column["type"]) for column in seen.get_columns("residents", schema="community")}
        expected = {
            name: kind.upper().replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMP") for name, kind in RESIDENTS.items()
        }
        equal(found, expected)
        equal(seen.get_foreign_keys("residents", schema="community"), [])
        equal(seen.get_indexes("residents", schema="community"), [])
        equal(seen.get_unique_constraints("residents", schema="community"), [])
        equal(seen.get_check_constraints("residents", schema="community"), [])
        seen.get_pk_constraint("residents", schema="community")
        contains(seen.get_table_comment("residents", schema="community")["text"], "Register of the people")

    both(check)


@case
def tables_by_reflection():
    def check(engine):
        divisions = Table("divisions", MetaData(), schema="platform", autoload_with=engine)
        equal([column.name for column in divisions.columns], ["code", "name", "level", "parent_code"])
        with engine.connect() as connection:
            query = select(divisions.c.level, func.count()).where(divisions.c.level > 4).group_by(divisions.c.level)
            equal(sorted(tuple(row) for row in connection.execute(query)), [(5, 2), (6, 3)])

    both(check)


@case
def answers_in_parts():
    def check(engine):
        with engine.connect().execution_options(stream_results=True, yield_per=4) as connection:
            found = connection.execute(text("SELECT code FROM divisions ORDER BY code"))
            equal([row[0] for row in found], [row[0] for row in DIVISIONS])

    both(check)


@case
def refusals():
    def check(engine):
        with engine.connect() as connection:
            error = raises(sqlalchemy.exc.ProgrammingError, connection.execute, text("SELECT temperature FROM visits"))
            contains(str(error), "sealed")
            connection.rollback()
            equal(connection.execute(text("SELECT 1")).scalar(), 1)

    both(check)


@case
def frames():
    def check(engine):
        found = pandas.read_sql("SELECT confirmed_date, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1", engine)
        equal(found.to_dict("list"), {"confirmed_date": [date(2026, 1, 5), date(2026, 1, 6)], "n": [8, 6]})
        found = pandas.read_sql(
            text("SELECT * FROM residents WHERE grid_code = :grid"), engine, params={"grid": "420191001001002"}
        )
        equal(list(found.columns), list(RESIDENTS))
        equal(len(found), 5)
        assert all(is_token(value) for value in found["id_no"]), found["id_no"]
        equal(int(found["special_group"].isna().sum()), 5)
        parts = pandas.read_sql("SELECT code FROM divisions ORDER BY code", engine, chunksize=4)
        equal([len(part) for part in parts], [4, 4, 1])
        found = pandas.read_sql_table("divisions", engine, schema="platform")
        equal(len(found), 9)

    both(check)


run("SQLAlchemy and pandas")
