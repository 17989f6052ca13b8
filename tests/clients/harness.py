"""What the client tests share: where the hub is, who asks, cases and how they are counted.

Each script beside this file speaks to a running hub through one client and prints a line a case, `PASSED CLIENT: CASE`
or `FAILED CLIENT: CASE`. `.ci/clients` starts the hub, pushes tests/fixtures and counts the lines. Expected values are
worked out by hand from the fixtures. What ADBC ingests goes to `health_bureau.vaccinations`, so no other case counts
that.

Where `GRIDHUB_CA` names a file, the hub speaks TLS with a certificate of that authority. What rests on libpq, and
asyncpg, hears of it by `PGSSLMODE` and `PGSSLROOTCERT`.
"""

import os
import sys
import time
import traceback
from datetime import datetime, timezone

HOST = "127.0.0.1"
HTTP = os.environ["GRIDHUB_URL"]
POSTGRES = int(os.environ["GRIDHUB_POSTGRES_PORT"])
FLIGHT = int(os.environ["GRIDHUB_FLIGHT_PORT"])
DATABASE = "hub"
CA = os.environ.get("GRIDHUB_CA")
WAY = " over TLS" if CA else ""

ANALYST = "health-analyst"  # two purposes, so it has to name one
PLANNER = "pharmacy-planner"  # one purpose, so it need not
WORKER = "grid-worker"  # one purpose, and the rows of one community
PURPOSE = "epidemiology"
OPTIONS = f"-c purpose={PURPOSE}"

# Runs for minutes where nobody stops it, in little memory.
SLOW = (
    "WITH RECURSIVE k AS (SELECT CAST(level AS BIGINT) AS n FROM divisions "
    "UNION ALL SELECT n + 1 FROM k WHERE n < 1000000000) SELECT max(n) FROM k"
)
# How much of what an error says is printed.
LONG = 8000
# Stopping may wait for the batch at hand, not for the answer.
SOON = 5.0

# platform.divisions, by code.
DIVISIONS = [
    ("42", "云省", 1, None),
    ("4201", "云泽市", 2, "42"),
    ("420191", "望江区", 3, "4201"),
    ("420191001", "临江街道", 4, "420191"),
    ("420191001001", "桥东社区", 5, "420191001"),
    ("420191001001001", "桥东一网格", 6, "420191001001"),
    ("420191001001002", "桥东二网格", 6, "420191001001"),
    ("420191001002", "桥西社区", 5, "420191001"),
    ("420191001002001", "桥西一网格", 6, "420191001002"),
]
# V000 was at half past seven in the morning in Asia/Shanghai.
FIRST_VISIT = datetime(2026, 1, 4, 23, 30, tzinfo=timezone.utc)

# What the analyst sees of community.residents, and what does not exist for it.
RESIDENTS = {
    "household_id": "text",
    "grid_code": "text",
    "id_no": "text",
    "sex": "text",
    "birth_date": "date",
    "residence_type": "text",
    "special_group": "text",
    "op": "text",
    "updated_at": "timestamp with time zone",
}
HIDDEN = {"name", "phone", "address"}
# The agencies with datasets that the analyst sees.
AGENCIES = {"cdc", "community", "health_bureau", "hospital", "pharmacy", "platform"}

_cases = []


def token(caller):
    """The access token of a caller."""
    return os.environ["GRIDHUB_TOKEN_" + caller.upper().replace("-", "_")]


def is_token(value):
    """Whether a value looks like a pseudonym: 32 lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef")


def case(function):
    """Marks a function (or a coroutine function) as a case."""
    _cases.append(function)
    return function


def equal(found, expected):
    """Fails, saying both, where a value is not the expected one."""
    assert found == expected, f"found {found!r}, expected {expected!r}"


def contains(found, expected):
    """Fails, saying both, where something is not in there."""
    assert expected in found, f"{expected!r} is not in {found!r}"


def lacks(found, unwanted):
    """Fails, saying both, where something is in there."""
    assert unwanted not in found, f"{unwanted!r} is in {found!r}"


class Soon:
    """Fails where what is inside takes longer than stopping something may take."""

    def __enter__(self):
        self.begin = time.monotonic()
        return self

    def __exit__(self, kind, *_):
        took = time.monotonic() - self.begin
        if kind is None:
            assert took < SOON, f"took {took:.1f} s"


def raises(kind, call, *arguments, **named):
    """The error that a call raises, of this kind."""
    try:
        found = call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"no {kind} but {found!r}")


def run(client, around=None):
    """Runs the cases of a script and ends it. `around` runs one, where it takes more than a call."""
    failed = 0
    for function in _cases:
        name = function.__name__.replace("_", " ")
        try:
            around(function) if around else function()
            print(f"PASSED {client}{WAY}: {name}", flush=True)
        except BaseException as error:  # panics of compiled drivers are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            where = [frame for frame in traceback.extract_tb(error.__traceback__) if "tests/clients" in frame.filename]
            line = f"{os.path.basename(where[-1].filename)}:{where[-1].lineno}" if where else "?"
            said = "\n    ".join(part.rstrip() for part in str(error).splitlines() if part.strip())
            print(f"FAILED {client}{WAY}: {name} ({line}): {type(error).__name__}: {said[:LONG]}", flush=True)
    sys.exit(1 if failed else 0)
