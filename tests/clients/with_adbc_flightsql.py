"""The ADBC driver for Flight SQL, and pyarrow's own client for what the driver cannot be made to do.

There is no JDBC driver for Flight SQL here: it is published to Maven only, and neither to PyPI, npm nor Debian.
"""

import json
import ssl
import threading
import urllib.request
import uuid
from datetime import date
from pathlib import Path

import pyarrow
from adbc_driver_flightsql import DatabaseOptions, dbapi
from adbc_driver_manager import Error
from pyarrow import flight

from harness import (
    ANALYST,
    CA,
    DATABASE,
    DIVISIONS,
    FIRST_VISIT,
    FLIGHT,
    HOST,
    HTTP,
    PLANNER,
    PURPOSE,
    RESIDENTS,
    SLOW,
    WORKER,
    Soon,
    case,
    contains,
    equal,
    is_token,
    lacks,
    raises,
    run,
    token,
)

ROOTS = Path(CA).read_bytes() if CA else None
ADDRESS = f"{'grpc+tls' if CA else 'grpc'}://{HOST}:{FLIGHT}"
TLS = {DatabaseOptions.TLS_ROOT_CERTS.value: ROOTS.decode()} if ROOTS else {}
UPLOADER = "health-uploader"


def header(name):
    return DatabaseOptions.RPC_CALL_HEADER_PREFIX.value + name


def connect(caller=ANALYST, purpose=PURPOSE, password=None, **settings):
    settings = {"username": caller, "password": password or token(caller)} | TLS | settings
    if purpose:
        settings[header("purpose")] = purpose
    return dbapi.connect(ADDRESS, db_kwargs=settings, autocommit=True)


def bearer(caller=ANALYST, purpose=PURPOSE):
    settings = {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token(caller)}", header("purpose"): purpose}
    return dbapi.connect(ADDRESS, db_kwargs=TLS | settings, autocommit=True)


def table(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetch_arrow_table()


@case
def rows():
    with connect() as connection:
        found = table(connection, "SELECT code, name, level, parent_code FROM divisions ORDER BY code")
        equal([tuple(row.values()) for row in found.to_pylist()], DIVISIONS)
        found = table(connection, "SELECT confirmed_date, count(*) AS n FROM cases GROUP BY 1 ORDER BY 1")
        equal(found.to_pydict(), {"confirmed_date": [date(2026, 1, 5), date(2026, 1, 6)], "n": [8, 6]})
        found = table(connection, "SELECT * FROM residents")
        equal((found.schema.names, found.num_rows), (list(RESIDENTS), 15))
        assert all(is_token(value) for value in found["id_no"].to_pylist())
        equal(found["special_group"].null_count, 11)


@case
def numbers_and_times():
    with connect() as connection:
        equal(table(connection, "SELECT min(visited_at) AS first FROM visits")["first"].to_pylist(), [FIRST_VISIT])
        equal(table(connection, "SELECT code FROM divisions WHERE level = 9").num_rows, 0)
    with connect(WORKER, None) as connection:
        found = table(connection, "SELECT temperature, needs FROM visits WHERE symptoms IS NOT NULL")
        equal([(str(row["temperature"]), row["needs"]) for row in found.to_pylist()], [("37.1", None)])
    with connect(PLANNER, None) as connection:
        equal(str(table(connection, "SELECT sum(amount) AS amount FROM sales")["amount"][0]), "166.50")


@case
def a_token_as_bearer():
    with bearer() as connection:
        equal(table(connection, "SELECT count(*) AS n FROM cases").to_pydict(), {"n": [14]})


@case
def parameters():
    with connect() as connection:
        equal(table(connection, "SELECT count(*) AS n FROM visits WHERE mode = $1", ("入户",)).to_pydict(), {"n": [16]})
        equal(table(connection, "SELECT count(*) AS n FROM divisions WHERE level = $1", (6,)).to_pydict(), {"n": [3]})
        found = table(connection, "SELECT count(*) AS n FROM cases WHERE confirmed_date = $1", (date(2026, 1, 6),))
        equal(found.to_pydict(), {"n": [6]})
        with connection.cursor() as cursor:
            for level, expected in [(1, 1), (5, 2), (6, 3)]:
                cursor.execute("SELECT count(*) FROM divisions WHERE level = $1", (level,))
                equal(cursor.fetchall(), [(expected,)])


@case
def schema_before_the_answer():
    with connect() as connection, connection.cursor() as cursor:
        found = cursor.adbc_execute_schema("SELECT code, level FROM divisions")
        equal([(field.name, str(field.type)) for field in found], [("code", "string"), ("level", "int16")])


@case
def objects_of_the_catalogue():
    with connect() as connection:
        found = connection.adbc_get_objects(depth="columns").read_all().to_pylist()
        equal([catalogue["catalog_name"] for catalogue in found], [DATABASE])
        schemas = {schema["db_schema_name"]: schema["db_schema_tables"] for schema in found[0]["catalog_db_schemas"]}
        tables = {found["table_name"]: found for found in schemas["community"]}
        equal(set(tables), {"residents", "visits"})
        columns = sorted(tables["residents"]["table_columns"], key=lambda column: column["ordinal_position"])
        equal([column["column_name"] for column in columns], list(RESIDENTS))
        found = str(connection.adbc_get_objects(depth="tables", table_name_filter="resid%").read_all().to_pylist())
        contains(found, "residents")
        lacks(found, "visits")
        contains(connection.adbc_get_table_types(), "TABLE")
        contains(str(connection.adbc_get_info()).lower(), "gridhub")
    with connect(PLANNER, None) as connection:
        found = str(connection.adbc_get_objects(depth="tables").read_all().to_pylist())
        contains(found, "sales")
        lacks(found, "residents")


@case
def schema_of_a_table():
    with connect() as connection:
        found = connection.adbc_get_table_schema("residents", db_schema_filter="community")
        equal(found.names, list(RESIDENTS))
        raises(Error, connection.adbc_get_table_schema, "nope", db_schema_filter="community")


@case
def refusals():
    with connect() as connection:
        contains(str(raises(Error, table, connection, "SELECT temperature FROM visits")), "sealed")
        contains(str(raises(Error, table, connection, "SELECT phone FROM residents")), "phone")
        contains(str(raises(Error, table, connection, "SELECT 1 FROM nope")), "nope")
        raises(Error, table, connection, "SELEC 1")
        raises(Error, table, connection, "INSERT INTO cases VALUES (1)")
        with connection.cursor() as cursor:
            raises(Error, cursor.executemany, "DELETE FROM cases WHERE case_id = $1", [("C000",)])
        equal(table(connection, "SELECT count(*) AS n FROM divisions").to_pydict(), {"n": [9]})


@case
def purposes():
    def ask(purpose):
        with connect(purpose=purpose) as connection:
            return table(connection, "SELECT count(*) AS n FROM cases").to_pydict()

    equal(ask("epidemiology"), {"n": [14]})
    contains(str(raises(Error, ask, None)), "purpose")
    contains(str(raises(Error, ask, "audit")), "purpose")
    with connect(PLANNER, None) as connection:
        equal(table(connection, "SELECT sum(qty) AS n FROM sales").to_pydict(), {"n": [9]})


@case
def logging_in():
    def ask(caller, password):
        with connect(caller, password=password) as connection:
            return table(connection, "SELECT 1 AS n")

    for caller, password in ((ANALYST, "ghub_wrong"), ("nobody-at-all", "ghub_wrong"), (PLANNER, token(ANALYST))):
        contains(str(raises(Error, ask, caller, password)), "UNAUTHENTICATED")
    # Names of every length, since the driver leaves out the padding of what it encodes.
    for caller in (ANALYST, PLANNER, WORKER, UPLOADER, "pharmacy-uploader"):
        with connect(caller, PURPOSE if caller == ANALYST else None) as connection:
            equal(table(connection, "SELECT 1 AS n").to_pydict(), {"n": [1]})


@case
def cancel():
    with connect() as connection, connection.cursor() as cursor:
        timer = threading.Timer(0.7, cursor.adbc_cancel)
        timer.start()
        with Soon():
            raises(Error, lambda: (cursor.execute(SLOW), cursor.fetchall()))
        timer.join()
        equal(table(connection, "SELECT count(*) AS n FROM divisions").to_pydict(), {"n": [9]})


@case
def a_time_out():
    with connect(**{"adbc.flight.sql.rpc.timeout_seconds.fetch": "1.0"}) as connection:
        with Soon():
            raises(Error, lambda: table(connection, SLOW))
        equal(table(connection, "SELECT count(*) AS n FROM divisions").to_pydict(), {"n": [9]})


def doses(*rows):
    """Rows for health_bureau.vaccinations: number, person, dose."""
    rows = [
        {
            "vacc_id": number,
            "id_no": person,
            "name": "无名",
            "birth_date": date(1977, 10, 19),
            "phone": None,
            "vaccine": "灭活-A",
            "batch_no": "B0009",
            "dose_no": dose,
            "vaccinated_on": date(2026, 1, 6),
            "site_uscc": "12420191MB00000013",
        }
        for number, person, dose in rows
    ]
    kinds = {"birth_date": pyarrow.date32(), "vaccinated_on": pyarrow.date32(), "dose_no": pyarrow.int32()}
    return pyarrow.Table.from_pylist(
        rows, pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in rows[0]])
    )


def receipt(batch):
    request = urllib.request.Request(
        f"{HTTP}/v1/datasets/health_bureau.vaccinations/batches/{batch}",
        headers={"Authorization": f"Bearer {token(UPLOADER)}"},
    )
    trust = ssl.create_default_context(cafile=CA) if CA else None
    with urllib.request.urlopen(request, timeout=30, context=trust) as reply:
        return json.load(reply)


def count_doses():
    with connect() as connection:
        return table(connection, "SELECT count(*) AS n FROM vaccinations")["n"][0].as_py()


@case
def an_upload_with_its_receipt():
    before, batch = count_doses(), str(uuid.uuid4())
    rows = doses(
        ("Y0001", "420191197710190205", 2), ("Y0002", "420191198011200210", 1), ("Y0003", "420191198312210244", 1)
    )
    for _ in range(2):  # the same batch again counts once
        with (
            connect(UPLOADER, None, **{header("gridhub-batch-id"): batch}) as connection,
            connection.cursor() as cursor,
        ):
            equal(cursor.adbc_ingest("vaccinations", rows, mode="append", db_schema_name="health_bureau"), 3)
        equal(count_doses(), before + 3)
    found = receipt(batch)
    equal(
        [found[name] for name in ("status", "rows_received", "rows_accepted", "rows_rejected")], ["accepted", 3, 3, 0]
    )


@case
def an_upload_of_which_a_part_is_rejected():
    before, batch = count_doses(), str(uuid.uuid4())
    # The second number fails its check digit.
    rows = doses(("Y0011", "420191198601220254", 1), ("Y0012", "420191198902230280", 1))
    with connect(UPLOADER, None, **{header("gridhub-batch-id"): batch}) as connection, connection.cursor() as cursor:
        equal(cursor.adbc_ingest("vaccinations", rows, mode="append", db_schema_name="health_bureau"), 1)
    equal(count_doses(), before + 1)
    found = receipt(batch)
    equal((found["status"], found["rejections"]), ("partly_accepted", {"check_digit": 1}))


@case
def uploads_that_are_refused():
    before, rows = count_doses(), doses(("Y0021", "420191198902230288", 1))

    def ingest(caller, rows, purpose=None, table="vaccinations", schema="health_bureau", **named):
        with connect(caller, purpose) as connection, connection.cursor() as cursor:
            return cursor.adbc_ingest(table, rows, **{"mode": "append", "db_schema_name": schema} | named)

    contains(str(raises(Error, ingest, UPLOADER, rows, mode="replace")), "append")
    contains(str(raises(Error, ingest, UPLOADER, rows, mode="create")), "append")
    contains(str(raises(Error, ingest, UPLOADER, rows, temporary=True)), "temporary")
    # What is not there and what is somebody else's look alike.
    unknown = str(raises(Error, ingest, UPLOADER, rows, table="nope"))
    contains(unknown, "NOT_FOUND")
    equal(str(raises(Error, ingest, UPLOADER, rows, table="cases", schema="cdc")), unknown)
    contains(str(raises(Error, ingest, UPLOADER, rows.drop_columns(["vacc_id"]))), "vacc_id")
    contains(str(raises(Error, ingest, ANALYST, rows, PURPOSE)), "may not push")
    equal(count_doses(), before)


# ------------------------------------------------------------------ pyarrow's own client


def command(name, value):
    """A message of Flight SQL with one text or bytes in field 1, inside `google.protobuf.Any`."""

    def field(number, content):
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    address = f"type.googleapis.com/arrow.flight.protocol.sql.{name}".encode()
    return field(1, address) + field(2, field(1, value.encode()))


def options(caller, purpose):
    headers = [(b"authorization", f"Bearer {token(caller)}".encode())]
    return flight.FlightCallOptions(headers=headers + ([(b"purpose", purpose.encode())] if purpose else []), timeout=30)


@case
def tickets_are_the_callers_own():
    analyst, planner = options(ANALYST, PURPOSE), options(PLANNER, "supply-planning")
    with flight.FlightClient(ADDRESS, tls_root_certs=ROOTS) as client:
        sql = "SELECT code FROM divisions ORDER BY code"
        info = client.get_flight_info(
            flight.FlightDescriptor.for_command(command("CommandStatementQuery", sql)), analyst
        )
        ticket = info.endpoints[0].ticket
        lacks(ticket.ticket, b"divisions")
        raises(pyarrow.ArrowException, lambda: client.do_get(ticket, planner).read_all())
        raises(pyarrow.ArrowException, lambda: client.do_get(ticket, flight.FlightCallOptions(timeout=30)).read_all())
        found = client.do_get(ticket, analyst).read_all()
        equal(found["code"].to_pylist(), [row[0] for row in DIVISIONS])
        equal(found.schema, info.schema)
        forged = flight.Ticket(command("TicketStatementQuery", "x" * 32))
        raises(pyarrow.ArrowException, lambda: client.do_get(forged, analyst).read_all())


@case
def a_session_by_handshake():
    with flight.FlightClient(ADDRESS, tls_root_certs=ROOTS) as client:
        name, value = client.authenticate_basic_token(ANALYST, token(ANALYST))
        equal(name, b"authorization")
        lacks(value, token(ANALYST).encode())
        session = flight.FlightCallOptions(headers=[(name, value), (b"purpose", PURPOSE.encode())], timeout=30)
        ask = flight.FlightDescriptor.for_command(command("CommandStatementQuery", "SELECT count(*) AS n FROM cases"))
        info = client.get_flight_info(ask, session)
        equal(client.do_get(info.endpoints[0].ticket, session).read_all().to_pydict(), {"n": [14]})
        nobody = flight.FlightCallOptions(headers=[(name, value[:-4] + b"AAAA")], timeout=30)
        raises(flight.FlightUnauthenticatedError, client.get_flight_info, ask, nobody)


run("ADBC Flight SQL")
