"""The HTTP door against its own description: schemathesis makes requests of /openapi.json and looks at the answers."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import HTTP, PLANNER, case, run, token

# Every check but two: whether SQL is taken or refused depends on more than the description can say, so a request that
# fits it may be refused, and one that does not may be taken for another reason.
LEFT_OUT = "positive_data_acceptance,negative_data_rejection"
EXAMPLES = 40
HERE = Path(__file__).resolve().parent


def findings(said):
    """What a run says after its progress: errors, failures, summary."""
    begins = [at for at in (said.find("= ERRORS ="), said.find("= FAILURES =")) if at >= 0]
    return said[min(begins, default=0) :]


@case
def requests_made_from_the_description():
    tool = Path(sys.executable).parent / "schemathesis"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                tool,
                "--config-file",
                HERE / "schemathesis.toml",
                "run",
                f"{HTTP}/openapi.json",
                "--header",
                f"Authorization: Bearer {token(PLANNER)}",
                "--phases",
                "examples,coverage,fuzzing",
                "--exclude-checks",
                LEFT_OUT,
                "--max-examples",
                str(EXAMPLES),
                "--generation-deterministic",
                "--request-timeout",
                "20",
                "--suppress-health-check",
                "all",
                "--warnings",
                "off",
                "--rate-limit",
                "auto",
                "--continue-on-failure",
                "--no-color",
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=420,
            env=os.environ | {"COLUMNS": "120", "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, findings(said)
    # A run that tried nothing has found nothing.
    tried = re.search(r"(\d+) generated", said)
    assert tried and int(tried[1]) > 200, said[-2000:]


run("schemathesis")
