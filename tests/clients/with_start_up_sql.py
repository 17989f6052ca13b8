"""What DBeaver, Metabase and Grafana ask when they connect and look around, statement by statement.

The lists are in start_up/. Each statement runs in the simple protocol and in the extended one, as drivers do either;
with answers as text, since PostgreSQL itself has no binary form of some columns of its catalogue.
"""

import re
from pathlib import Path

import psycopg

from harness import ANALYST, DATABASE, HOST, OPTIONS, POSTGRES, case, contains, equal, lacks, run, token


def statements(name):
    """The statements of a list, each with what is expected of it."""
    text = (Path(__file__).parent / "start_up" / f"{name}.sql").read_text(encoding="utf-8")
    for part in re.split(r";\n(?:\n|$)", text):
        lines = part.strip().splitlines()
        wants = [re.match(r"-- (rows|has|lacks): (.*)", line) for line in lines]
        sql = "\n".join(
            line for line, want in zip(lines, wants) if not want and (not line.startswith("-- ") or "::" in line)
        )
        if sql.strip():
            yield sql, [want.groups() for want in wants if want]


def check(sql, wants, found):
    """Whether rows are as expected."""
    said = str(found)
    for kind, want in wants:
        if kind == "has":
            contains(said, want)
        elif kind == "lacks":
            lacks(said, want)
        elif want == "some":
            assert found, "no rows"
        elif want == "none":
            equal(found, [])
        elif want != "any":
            equal(len(found), int(want))


def ask_all(name):
    """Asks all statements of a list and fails with all that went wrong, not only with the first."""
    wrong = []
    with psycopg.connect(
        host=HOST,
        port=POSTGRES,
        user=ANALYST,
        password=token(ANALYST),
        dbname=DATABASE,
        options=OPTIONS,
        autocommit=True,
        connect_timeout=10,
    ) as connection:

        def oid(sql):
            return str(connection.execute(sql).fetchone()[0])

        named = {
            ":residents": oid(
                "SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname = 'community' AND c.relname = 'residents'"
            ),
            ":community": oid("SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'community'"),
        }
        asked = 0
        for sql, wants in statements(name):
            asked += 1
            for word, number in named.items():
                sql = sql.replace(word, number)
            for way, prepare in (("simple", None), ("extended", True)):
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(sql, prepare=prepare)
                        check(sql, wants, cursor.fetchall() if cursor.description else [])
                except (psycopg.Error, AssertionError) as error:
                    said = " ".join(str(error).split())[:300]
                    wrong.append(f"statement {asked}, {way}: {' '.join(sql.split())[:160]}: {said}")
    assert asked > 5, "the list is empty"
    assert not wrong, f"{len(wrong)} of {2 * asked}: " + "\n".join(wrong)


@case
def dbeaver():
    ask_all("dbeaver")


@case
def metabase():
    ask_all("metabase")


@case
def grafana():
    ask_all("grafana")


run("start-up SQL")
