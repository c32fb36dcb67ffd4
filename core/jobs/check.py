"""The process that checks results against a job's output schema; run as a script, never imported.

A schema and a result may be hostile: one regular expression can hold an interpreter for hours, and no thread
can stop it. So the check has a process of its own, and its alarm clock is the kernel's: SIGALRM with its
default action ends the process even in the middle of a match.

argv: the import path as JSON, seconds per check. stdin: the schema on one line, then one result per line.
stdout: one line per result, a JSON list of [path, problem].
"""

import json
import signal
import sys

MAX_VIOLATIONS = 8
MAX_CHARS = 300


def shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS // 2]} … {text[-MAX_CHARS // 2 :]}"


def main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    seconds = float(sys.argv[2])
    from jsonschema import Draft202012Validator
    from referencing import Registry

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    validator = Draft202012Validator(json.loads(sys.stdin.readline()), registry=Registry())
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        found = []
        for error in validator.iter_errors(json.loads(line)):
            found.append([shorten(error.json_path), shorten(error.message)])
            if len(found) == MAX_VIOLATIONS:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
