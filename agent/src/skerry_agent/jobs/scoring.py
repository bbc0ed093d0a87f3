"""The program that scores parts of batch jobs: a JSON task per line in, JSON lines of progress and one of the end out.

Run by :mod:`skerry_agent.jobs.child` as ``python -m skerry_agent.jobs.scoring PARENT``. It is ``skerry-agent batch`` in
all but its ears and mouth, and scores one part after the other until nobody tells it more.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TextIO

import msgspec

from skerry_agent.batch import job
from skerry_agent.jobs.child import Failed, Summary, Task
from skerry_agent.parent import die_with_parent
from skerry_modules.errors import InputError, SkerryError


def score(task: Task, out: TextIO) -> Summary | Failed:
    """One part; what it has scored when it fails stays for the next try."""
    order = job.Order(
        url=task.url,
        model=task.model,
        version=task.version,
        input=Path(task.input),
        output=Path(task.output),
        columns=task.columns,
        keep=task.keep,
        rows=task.rows,
        part_rows=task.part_rows,
        header=task.header,
        told=True,
    )
    try:
        done = job.run(order, out)
    except SkerryError as error:
        return Failed(code=error.code, message=error.message, input=isinstance(error, InputError))
    except OSError as error:
        text = f"cannot go on with {task.output}: {error.strerror or error}; make room there"
        return Failed(code="resource.no_space", message=text, input=False)
    except Exception as error:
        traceback.print_exc()
        text = f"cannot score the part: {type(error).__name__}: {error}; see the agent's log"
        return Failed(code="internal.bug", message=text[:1000], input=False)
    return Summary(rows=done.rows, errors=done.errors)


def main(parent: int) -> None:
    die_with_parent(parent, "skerry-batch")
    out = sys.stdout
    for line in sys.stdin:
        answer = score(msgspec.json.decode(line, type=Task), out)
        out.write(msgspec.json.encode(answer).decode() + "\n")
        out.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
