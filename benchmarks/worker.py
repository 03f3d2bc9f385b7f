"""The other end of ``places.Worker``: a line with a task in, a line with its value out."""

from __future__ import annotations

import json
import os
import sys

from benchmarks import tasks


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # containers inherit it
    for line in sys.stdin:
        name, given = json.loads(line)
        try:
            answer = {"value": getattr(tasks, name)(**given)}
        except Exception as error:  # whatever it is, the other end shows it
            answer = {"error": f"{name}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
