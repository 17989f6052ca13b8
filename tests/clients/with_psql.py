"""psql, as analysts use it: the commands that look at the catalogue, \\copy, notices, settings, exit codes."""

import csv
import os
import subprocess
import tempfile
from datetime import datetime

from harness import (
    AGENCIES,
    ANALYST,
    CA,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    HIDDEN,
    HOST,
    OPTIONS,
    PLANNER,
    POSTGRES,
    RESIDENTS,
    SLOW,
    Soon,
    case,
    contains,
    equal,
    is_token,
    lacks,
    run,
    token,
)


def psql(*arguments, caller=ANALYST, options=OPTIONS, password=None, script=None, stop=True):
    """Runs psql: its exit code, what it printed, what it complained of."""
    settings = {
        name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PGSSL")
    }
    settings |= {"PGPASSWORD": password or token(caller), "PGCONNECT_TIMEOUT": "10", "LC_ALL": "C.UTF-8"}
    if options:
        settings["PGOPTIONS"] = options
    command = ["psql", "-X", "-w", "-h", HOST, "-p", str(POSTGRES), "-U", caller, "-d", DATABASE]
    command += ["-v", "ON_ERROR_STOP=1"] if stop else []
    done = subprocess.run(
        command + list(arguments), env=settings, input=script, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def shown(command, **named):
    """What a command prints, which must succeed."""
    code, out, complaints = psql("-c", command, **named)
    assert code == 0 and "ERROR" not in complaints, f"{command}: exit {code}: {complaints}"
    return out


def rows(sql, **named):
    """The rows of a statement, as text."""
    code, out, complaints = psql("-At", "-F", "|", "-c", sql, **named)
    equal((code, "ERROR" in complaints, complaints if code else ""), (0, False, ""))
    return [tuple(line.split("|")) for line in out.splitlines()]


def refused(sql, **named):
    """What psql says of a statement that fails, with the SQLSTATE in front of the message."""
    code, out, complaints = psql("-v", "VERBOSITY=verbose", "-c", sql, **named)
    equal((code, out), (1, ""))
    return complaints


@case
def rows_of_an_answer():
    equal(
        rows("SELECT confirmed_date, count(*) FROM cases GROUP BY 1 ORDER BY 1"),
        [("2026-01-05", "8"), ("2026-01-06", "6")],
    )
    equal(
        rows("SELECT code, name, level, parent_code FROM divisions ORDER BY code LIMIT 2"),
        [("42", "云省", "1", ""), ("4201", "云泽市", "2", "42")],
    )
    assert all(is_token(row[0]) for row in rows("SELECT id_no FROM cases"))


@case
def nulls_numbers_and_times():
    code, out, _ = psql("-At", "-P", "null=∅", "-c", "SELECT parent_code FROM divisions WHERE code = '42'")
    equal((code, out), (0, "∅\n"))
    contains(rows("SELECT avg(level) FROM divisions")[0][0], "4.2222222222")
    ((found,),) = rows("SELECT min(visited_at) FROM visits")
    equal(datetime.fromisoformat(found), FIRST_VISIT)


@case
def list_of_tables():
    found = shown("\\dt")
    for table in ("residents", "visits", "cases", "divisions", "sales"):
        contains(found, table)
    found = shown("\\dt community.*")
    contains(found, "residents")
    contains(found, "visits")
    lacks(found, "divisions")


@case
def list_of_relations():
    found = shown("\\d")
    contains(found, "residents")
    contains(found, "community")


@case
def a_table():
    found = shown("\\d community.residents")
    contains(found, 'Table "community.residents"')
    columns = {}
    for line in found.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) >= 2 and parts[0] != "Column":
            columns[parts[0]] = parts[1]
    equal(columns, RESIDENTS)


@case
def a_table_by_its_bare_name():
    contains(shown("\\d residents"), "household_id")


@case
def a_table_and_its_exposures():
    found = shown("\\d+ community.visits")
    contains(found, "token")
    contains(found, "aggregate")
    contains(found, "Body temperature in degrees Celsius")
    for column in HIDDEN | {"remark"}:
        lacks([line.split("|")[0].strip() for line in found.splitlines()], column)


@case
def a_table_that_is_not_there():
    for name in ("nope", "hub.nope", "community.nope"):
        code, out, complaints = psql("-c", f"\\d {name}", stop=False)
        contains(out + complaints, f'Did not find any relation named "{name}".')


@case
def a_hidden_table_is_not_there():
    code, out, complaints = psql("-c", "\\d community.residents", caller=PLANNER, options=None, stop=False)
    contains(out + complaints, 'Did not find any relation named "community.residents".')
    found = shown("\\dt *.*", caller=PLANNER, options=None)
    contains(found, "sales")
    for table in ("residents", "visits", "vaccinations", "quarantine_orders"):
        lacks(found, table)


@case
def list_of_schemas():
    found = {line.split("|")[0].strip() for line in shown("\\dn").splitlines()}
    assert AGENCIES <= found, found
    found = {line.split("|")[0].strip() for line in shown("\\dn", caller=PLANNER, options=None).splitlines()}
    lacks(found, "hospital")
    shown("\\dn+")


@case
def list_of_databases():
    found = shown("\\l")
    contains(found, DATABASE)
    contains(found, "UTF8")


@case
def list_of_roles():
    found = shown("\\du")
    contains(found, ANALYST)
    for other in ("cdc-epidemiologist", "pharmacy-planner", "hub-admin", "grid-worker"):
        lacks(found, other)


@case
def lists_of_what_there_is_not():
    for command in ("\\df", "\\dv", "\\di", "\\ds", "\\dm", "\\dT", "\\dx", "\\dp", "\\dt+", "\\df+", "\\db", "\\dD"):
        shown(command)


@case
def where_it_is_connected():
    found = shown("\\conninfo")
    contains(found, f'database "{DATABASE}"')
    contains(found, f'user "{ANALYST}"')
    equal(rows("SELECT current_user, current_database()"), [(ANALYST, DATABASE)])
    contains(rows("SELECT version()")[0][0], "PostgreSQL 16")


@case
def types_of_an_answer():
    code, found, complaints = psql(script="SELECT code, level FROM divisions \\gdesc\n")
    equal((code, complaints), (0, ""))
    contains(found, " code   | text")
    contains(found, " level  | smallint")


@case
def copy_to_a_file():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "divisions.csv")
        columns = "code, name, level, parent_code"
        found = shown(f"\\copy (SELECT {columns} FROM divisions ORDER BY code) TO '{path}' CSV HEADER")
        equal(found.strip(), "COPY 9")
        with open(path, encoding="utf-8", newline="") as file:
            found = list(csv.reader(file))
    equal(found[0], ["code", "name", "level", "parent_code"])
    equal(found[1:], [[code, name, str(level), parent or ""] for code, name, level, parent in DIVISIONS])


@case
def copy_as_text():
    found = shown("COPY (SELECT code, parent_code FROM divisions ORDER BY code LIMIT 2) TO STDOUT")
    equal(found, "42\t\\N\n4201\t42\n")


@case
def copy_passes_the_gate():
    contains(refused("COPY (SELECT temperature FROM visits) TO STDOUT"), "42501")
    contains(refused("COPY (SELECT phone FROM residents) TO STDOUT"), "42703")


@case
def nothing_is_copied_in():
    code, out, complaints = psql("-v", "VERBOSITY=verbose", "-c", "\\copy cases from stdin csv", script="1\n\\.\n")
    equal((code, out), (1, ""))
    assert any(state in complaints for state in ("42501", "0A000", "25006")), complaints


@case
def notices_tell_of_protection():
    code, out, complaints = psql("-At", "-c", "SELECT count(temperature) FROM visits")
    equal(code, 0)
    # Rows of sixteen people, give or take four: their noise is not that which decides whether there is a number.
    assert out.strip() == "" or 12 <= int(out) <= 20, out
    contains(complaints, "NOTICE:")
    contains(complaints, "protected")
    lacks(psql("-At", "-c", "SELECT count(*) FROM divisions")[2], "NOTICE")


@case
def a_purpose_is_set():
    equal(rows("SHOW purpose"), [("epidemiology",)])
    script = "SET purpose = 'epidemiology';\nSHOW purpose;\nSELECT count(*) FROM cases;\n"
    code, out, complaints = psql("-At", "-q", options=None, script=script)
    equal((code, out, complaints), (0, "epidemiology\n14\n", ""))
    script = "SET purpose TO 'supply-planning';\nSELECT special_group FROM residents;\n"
    code, out, complaints = psql("-v", "VERBOSITY=verbose", options=None, script=script)
    equal(code, 3)
    contains(complaints, "42501")


@case
def a_purpose_is_needed():
    found = refused("SELECT count(*) FROM cases", options=None)
    contains(found, "22023")
    contains(found, "epidemiology")
    contains(found, "supply-planning")
    equal(rows("SELECT sum(qty) FROM sales", caller=PLANNER, options=None), [("9",)])


@case
def a_purpose_of_somebody_else():
    found = refused("SET purpose = 'audit'", options=None)
    contains(found, "22023")
    contains(found, "epidemiology")
    code, _, complaints = psql("-c", "SELECT count(*) FROM cases", options="-c purpose=audit")
    assert code in (1, 2), code
    contains(complaints, "purpose")


@case
def refusals():
    found = refused("SELECT temperature FROM visits")
    for part in ("42501", "sealed-field", "HINT:", "avg(temperature)"):
        contains(found, part)
    contains(refused("SELECT phone FROM residents"), "42703")
    contains(refused("SELECT 1 FROM nope"), "42P01")
    contains(refused("SELECT 1 FROM hospital.nope"), "42P01")
    contains(refused("SELECT 1 FROM residents", caller=PLANNER, options=None), "42P01")
    contains(refused("SELEC 1"), "42601")
    for sql in (
        "DELETE FROM cases",
        "CREATE TABLE x (a int)",
        "DROP TABLE cases",
        "TRUNCATE cases",
        "VACUUM",
        "INSERT INTO cases VALUES (1)",
        "UPDATE cases SET sex = '男'",
        "GRANT SELECT ON cases TO public",
    ):
        found = refused(sql)
        assert any(state in found for state in ("42501", "0A000", "25006", "42601")), found


@case
def logging_in():
    code, _, complaints = psql("-c", "SELECT 1", password="ghub_wrong")
    equal(code, 2)
    contains(complaints, "password authentication failed")
    known = complaints.replace(ANALYST, "USER")
    code, _, complaints = psql("-c", "SELECT 1", caller="nobody-at-all", password="ghub_wrong")
    equal((code, complaints.replace("nobody-at-all", "USER")), (2, known))
    # Somebody's token under another's name.
    code, _, complaints = psql("-c", "SELECT 1", caller=PLANNER, password=token(ANALYST), options=None)
    equal((code, complaints.replace(PLANNER, "USER")), (2, known))


@case
def the_line_is_encrypted_where_it_should_be():
    found = shown("\\conninfo")
    (contains if CA else lacks)(found, "SSL connection (protocol: TLSv1.")


@case
def exit_codes():
    equal(psql("-c", "SELECT 1")[0], 0)
    equal(psql("-c", "SELECT 1 FROM nope")[0], 1)
    equal(psql(script="SELECT 1 FROM nope;\n")[0], 3)
    equal(psql(script="SELECT 1 FROM nope;\nSELECT 1;\n", stop=False)[0], 0)


@case
def several_statements():
    code, out, complaints = psql("-At", "-c", "SELECT 1; SELECT count(*) FROM divisions; SHOW purpose")
    equal((code, out, complaints), (0, "1\n9\nepidemiology\n", ""))
    code, out, complaints = psql("-At", "-c", "SELECT 1; SELECT 1 FROM nope; SELECT 2")
    equal((code, out), (1, "1\n"))


@case
def transactions():
    script = "BEGIN;\nSELECT 1 FROM nope;\nSELECT 1;\nROLLBACK;\nSELECT 2;\n"
    code, out, complaints = psql("-At", "-q", "-v", "VERBOSITY=verbose", script=script, stop=False)
    equal((code, out), (0, "2\n"))
    contains(complaints, "25P02")
    script = "BEGIN;\nSET purpose = 'supply-planning';\nROLLBACK;\nSHOW purpose;\n"
    equal(psql("-At", "-q", script=script)[:2], (0, "epidemiology\n"))


@case
def an_answer_in_parts():
    script = "\\set FETCH_COUNT 4\nSELECT code FROM divisions ORDER BY code;\n"
    code, out, complaints = psql("-At", script=script)
    equal((code, out.split(), complaints), (0, [row[0] for row in DIVISIONS], ""))


@case
def a_cursor():
    script = "BEGIN;\nDECLARE c CURSOR FOR SELECT code FROM divisions ORDER BY code;\n"
    script += "FETCH 2 FROM c;\nFETCH ALL FROM c;\nCLOSE c;\nCOMMIT;\n"
    code, out, complaints = psql("-At", "-q", script=script)
    equal((code, out.split(), complaints), (0, [row[0] for row in DIVISIONS], ""))


@case
def a_prepared_statement():
    script = "PREPARE p (int) AS SELECT code FROM divisions WHERE level = $1;\nEXECUTE p (3);\nDEALLOCATE p;\n"
    code, out, complaints = psql("-At", "-q", "-v", "VERBOSITY=verbose", script=script)
    equal((code, out, complaints), (0, "420191\n", ""))


@case
def a_statement_that_takes_too_long():
    with Soon():
        found = refused(SLOW, options=f"{OPTIONS} -c statement_timeout=500ms")
    contains(found, "57014")


@case
def explain_shows_the_own_plan():
    contains(shown("EXPLAIN SELECT code FROM divisions"), "divisions")


run("psql")
