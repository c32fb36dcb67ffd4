"""Every verb of the command line with its options. Light: `--help` and `completion` are made from this."""

from __future__ import annotations

from tui import job_notes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable

PROGRAM = "watchroom"

COMMON: tuple[tuple[tuple[str, ...], dict[str, object]], ...] = (
    (("--base-url",), {"metavar": "URL", "help": "server that speaks the Responses API, or scripted:NAME"}),
    (("--model",), {"metavar": "NAME", "help": "model to ask"}),
    (("--api-key-env",), {"metavar": "VAR", "help": "environment variable that holds the API key"}),
    (
        ("--approval-policy",),
        {"choices": ("untrusted", "on-request", "never"), "help": "when a command asks an operator first"},
    ),
    (
        ("--sandbox",),
        {"choices": ("read-only", "workspace-write", "off"), "help": "what commands may touch"},
    ),
    (("--full-auto",), {"action": "store_true", "help": "never ask, write in the workspace only"}),
    (("-C", "--cd"), {"metavar": "DIR", "help": "working folder of the agents"}),
    (("--profile",), {"metavar": "NAME", "help": "[profiles.NAME] of the settings file"}),
    (
        ("--progress",),
        {"choices": ("auto", "line", "lines", "off"), "default": "auto", "help": "progress of a job"},
    ),
    (
        ("-c",),
        {"metavar": "key=value", "action": "append", "default": [], "dest": "values", "help": "any setting"},
    ),
    (("--config",), {"metavar": "FILE", "help": "settings file to read"}),
    (("--home",), {"metavar": "DIR", "help": "folder for settings and store (WATCHROOM_HOME)"}),
    (("--json",), {"action": "store_true", "help": "JSON on standard output, nothing else there"}),
    (("--plain",), {"action": "store_true", "help": "lines instead of the full-screen console"}),
)
TAKES_VALUE = {flag for flags, how in COMMON if how.get("action") != "store_true" for flag in flags}
LATER = ("watch",)
"""Verbs of the manual that this version does not have: never taken for a task by accident."""
ROW_STATUSES = ("pending", "running", "completed", "failed", "skipped")
STATUSES = ("pending_init", "running", "idle", "interrupted", "completed", "errored", "shutdown")
"""Statuses that an agent in the store can have."""

HOMES = frozenset({"--profile", "-c", "--config", "--home"})
"""The common options of a verb that runs no model: where things are kept."""
READS = HOMES | {"--json"}
MODEL = HOMES | {"--base-url", "--model", "--api-key-env"}
RUNS = frozenset(flags[0] for flags, _ in COMMON) - {"--progress"}


class Verb:
    """What a verb is called, and the function (`module:name`) that does it and returns the exit code.

    `options` are the common options (first spelling) that matter to it: its help lists them. The others are
    taken all the same, so that a script may give every verb the same ones. A `hidden` verb is for programs.
    `notes` stand in its help, behind the options.
    """

    def __init__(
        self,
        run: str,
        summary: str,
        example: str,
        arguments: Callable[[ArgumentParser], None] | None = None,
        *,
        options: frozenset[str] = READS,
        hidden: bool = False,
        notes: str = "",
    ) -> None:
        self.run = run
        self.summary = summary
        self.example = example
        self.arguments = arguments or (lambda parser: None)
        self.options = options
        self.hidden = hidden
        self.notes = notes


# --- values ----------------------------------------------------------------------------------------------


def _at_least_one(text: str) -> int:
    return _number(text, 1, None)


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _number(text: str, low: int, high: int | None) -> int:
    from argparse import ArgumentTypeError

    if not text.isascii() or not text.isdigit() or int(text) < low or (high is not None and int(text) > high):
        bounds = f"{low} or more" if high is None else f"from {low} to {high}"
        raise ArgumentTypeError(f"must be a whole number, {bounds}, not {quote(text)}")
    return int(text)


def _seconds(text: str) -> float:
    from argparse import ArgumentTypeError

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise ArgumentTypeError(f"must be a number of seconds above 0, not {quote(text)}")
    return value


def _tokens(text: str) -> int:
    return int(_limit(text, "tokens"))


def _dollars(text: str) -> float:
    return _limit(text if text.startswith("$") else f"${text}", "cost")


def _limit(text: str, kind: str) -> float:
    from argparse import ArgumentTypeError

    from core.view.budget import parse

    try:
        wanted = parse(text, None)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}, not {quote(text)}") from None
    if wanted.kind != kind:
        raise ArgumentTypeError(f"must be an amount of {'dollars' if kind == 'cost' else kind}")
    return wanted.value


def quote(text: str) -> str:
    from core.safety.text import clean_line, shorten

    return f"'{shorten(clean_line(text), 60)}'"


# --- arguments -------------------------------------------------------------------------------------------


def _console(parser: ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", nargs="?", help="what the root agent shall do")


def _exec(parser: ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="what the root agent shall do; - reads it from stdin")


def _job_run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="?",
        help="CSV, TSV, JSON lines or Parquet, by its ending; a worker per row",
    )
    parser.add_argument(
        "--glob",
        metavar="PATTERN",
        help="the files that match as rows, instead of INPUT: the columns path, name, size",
    )
    parser.add_argument(
        "--instruction",
        metavar="TEXT|@FILE",
        required=True,
        help="what to do with a row; {column} is filled in",
    )
    parser.add_argument("--output", metavar="FILE", help="CSV to write (default: beside the input)")
    parser.add_argument("--id-column", metavar="C", help="column that names the rows")
    parser.add_argument("--name", metavar="N", help="name of the job")
    parser.add_argument("--max-concurrency", metavar="N", type=_at_least_one, help="workers at a time")
    parser.add_argument("--max-runtime", metavar="SECONDS", type=_seconds, help="limit per row")
    parser.add_argument("--max-attempts", metavar="N", type=_at_least_one, help="tries per row")
    parser.add_argument("--schema", metavar="FILE", help="JSON Schema that every result must fit")
    parser.add_argument("--no-export", action="store_true", help="keep the results in the store only")
    parser.add_argument("--raw", action="store_true", help="write cells as they are, formulas too")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show row 1, store nothing")


_JOB = "id of a job, its first letters, or its name"


def _job(parser: ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help=_JOB)


def _job_rows(parser: ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--status", choices=ROW_STATUSES, help="rows with this status only")


def _job_change(parser: ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    parser.add_argument("--as", metavar="NAME", dest="author", default="operator", help="who asks (recorded)")


def _job_retry(parser: ArgumentParser) -> None:
    _job_change(parser)
    parser.add_argument("--failed", action="store_true", help="all failed rows (the default)")
    parser.add_argument(
        "--row",
        metavar="ITEM",
        action="append",
        default=[],
        help="this failed or skipped row; may be repeated",
    )


def _job_skip(parser: ArgumentParser) -> None:
    _job_change(parser)
    parser.add_argument(
        "--row",
        metavar="ITEM",
        action="append",
        required=True,
        help="this pending or failed row (repeatable)",
    )


def _job_set(parser: ArgumentParser) -> None:
    _job_change(parser)
    parser.add_argument(
        "--max-concurrency", metavar="N", type=_at_least_one, required=True, help="workers at a time"
    )


def _job_export(parser: ArgumentParser) -> None:
    _job(parser)
    parser.add_argument("--raw", action="store_true", help="write cells as they are, formulas too")
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), default="csv", help="default: csv")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: the job's own output)")


def _one(metavar: str, what: str) -> Callable[[ArgumentParser], None]:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar=metavar, help=what)

    return add


def _server(parser: ArgumentParser) -> None:
    parser.add_argument("--port", metavar="N", type=_port, default=0, help="0, the default, takes a free one")
    parser.add_argument("--scenario", metavar="NAME|FILE", default="demo", help="what the model answers")


def _maybe(metavar: str, what: str) -> Callable[[ArgumentParser], None]:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument("id", metavar=metavar, nargs="?", help=what)

    return add


def _attach(parser: ArgumentParser) -> None:
    what = "id of a swarm or agent, or its first letters (default: the newest that runs)"
    parser.add_argument("id", metavar="ID", nargs="?", help=what)
    parser.add_argument("--ssh", metavar="HOST", help="the engine of that machine, through the system's ssh")


def _engine(parser: ArgumentParser) -> None:
    from argparse import SUPPRESS

    # How the console starts one: detached, saying on a pipe when it is ready.
    parser.add_argument("--background", action="store_true", help=SUPPRESS)
    parser.add_argument("--ready-fd", metavar="N", type=_at_least_one, help=SUPPRESS)


def _agent_list(parser: ArgumentParser) -> None:
    parser.add_argument("id", metavar="SWARM", nargs="?", help="one swarm, also one that runs no more")
    parser.add_argument("--status", choices=STATUSES, help="agents with this status only")


def _agent(parser: ArgumentParser) -> None:
    parser.add_argument("agent", metavar="AGENT", help="thread id or its first letters, path, or nickname")


def _agent_change(parser: ArgumentParser) -> None:
    parser.add_argument("--swarm", metavar="ID", help="look for the agent in this swarm only")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    parser.add_argument("--as", metavar="NAME", dest="author", default="operator", help="who asks (recorded)")


def _agent_interrupt(parser: ArgumentParser) -> None:
    _agent(parser)
    parser.add_argument("--cascade", action="store_true", help="and the turns of everything below it")
    _agent_change(parser)


def _agent_close(parser: ArgumentParser) -> None:
    _agent(parser)
    _agent_change(parser)


def _agent_send(parser: ArgumentParser) -> None:
    _agent(parser)
    parser.add_argument("text", metavar="TEXT", help="what to say; - reads it from stdin")
    _agent_change(parser)


def _agent_budget(parser: ArgumentParser) -> None:
    parser.add_argument("id", metavar="SWARM", help="id of a swarm or agent, or its first letters")
    for flag, amount, what in (
        ("--tokens", _tokens, "tokens that all its agents together may use, like 1.5M"),
        ("--cost", _dollars, "US dollars that all its agents together may cost"),
        ("--per-agent-tokens", _tokens, "tokens that each of its agents may use"),
        ("--per-agent-cost", _dollars, "US dollars that each of its agents may cost"),
    ):
        parser.add_argument(flag, metavar="N", type=amount, help=f"{what}; 0: no limit")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, change nothing")
    parser.add_argument("--as", metavar="NAME", dest="author", default="operator", help="who asks (recorded)")


def _completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


VERBS: dict[str, Verb] = {
    "": Verb(
        "tui.run_console:run",
        "run, watch and steer a swarm of LLM agents",
        f'{PROGRAM} --model gpt-5 "find out why the tests are slow"',
        _console,
        options=RUNS - {"--json"},
    ),
    "demo": Verb(
        "tui.run_demo:run",
        "a real swarm on the embedded scripted model: no key, no network",
        f"{PROGRAM} demo --plain",
        options=RUNS - {"--base-url", "--api-key-env", "-C"},
    ),
    "exec": Verb(
        "tui.run_exec:run",
        "run one task without a console; the answer goes to standard output",
        f'{PROGRAM} exec --model gpt-5 "summarise README.md in three lines" > summary.txt',
        _exec,
        options=RUNS,
    ),
    "resume": Verb(
        "tui.run_resume:run",
        "go on with a swarm whose engine has ended",
        f"{PROGRAM} resume 019c2f7e-4a10-7b2c",
        _maybe("ID", "id of a swarm or agent, or its first letters (default: the newest that was cut short)"),
        options=RUNS,
    ),
    "attach": Verb(
        "tui.run_attach:run",
        "the console on an engine that runs, also over ssh",
        f"{PROGRAM} attach --ssh build-host",
        _attach,
        options=HOMES,
    ),
    "engine": Verb(
        "tui.run_engine:run",
        "run the engine of this home in the foreground",
        f"{PROGRAM} engine",
        _engine,
        options=HOMES,
    ),
    "stop": Verb(
        "tui.run_engine:stop",
        "end the engine of this home and everything it runs",
        f"{PROGRAM} stop --json",
    ),
    "bridge": Verb(
        "tui.run_attach:bridge",
        "carry the bytes of an engine over standard input and output (what attach --ssh runs)",
        f"{PROGRAM} bridge",
        _maybe("ID", "id of a swarm or agent, or its first letters"),
        options=HOMES,
        hidden=True,
    ),
    "agent list": Verb(
        "tui.run_agent:show_list",
        "agents of the swarms that run, parents before children",
        f"{PROGRAM} agent list --status running --json",
        _agent_list,
    ),
    "agent interrupt": Verb(
        "tui.run_agent:interrupt",
        "stop the turn that an agent runs",
        f"{PROGRAM} agent interrupt /root/audit --cascade",
        _agent_interrupt,
    ),
    "agent close": Verb(
        "tui.run_agent:close",
        "end an agent and everything below it",
        f"{PROGRAM} agent close iris --dry-run",
        _agent_close,
    ),
    "agent resume": Verb(
        "tui.run_agent:resume",
        "open a closed agent again, with those closed together with it",
        f"{PROGRAM} agent resume /root/audit --dry-run",
        _agent_close,
    ),
    "agent send": Verb(
        "tui.run_agent:send",
        "say something to an agent, as the operator",
        f'{PROGRAM} agent send iris "look at the tests too"',
        _agent_send,
    ),
    "agent budget": Verb(
        "tui.run_budget:budget",
        "what a swarm may spend; agents that wait for that go on",
        f"{PROGRAM} agent budget 0198c0de --tokens 2M",
        _agent_budget,
    ),
    "agent compact": Verb(
        "tui.run_agent:compact",
        "have an agent's history replaced by a summary before its next request",
        f"{PROGRAM} agent compact iris",
        _agent_close,
    ),
    "job run": Verb(
        "tui.run_job:run",
        "map one worker agent over each row of a table",
        f'{PROGRAM} job run files.csv --instruction "Count the lines of {{path}}." --output counted.csv',
        _job_run,
        options=RUNS | {"--progress"},
        notes=job_notes.RUN,
    ),
    "job list": Verb(
        "tui.job_shown:show_list", "jobs in the store, newest first", f"{PROGRAM} job list --json"
    ),
    "job show": Verb(
        "tui.job_shown:show_one",
        "one job: counts, errors, where its output is",
        f"{PROGRAM} job show 8184e894",
        _job,
    ),
    "job rows": Verb(
        "tui.job_shown:show_rows",
        "the rows of a job: tries, results, errors",
        f"{PROGRAM} job rows 8184e894 --status failed",
        _job_rows,
    ),
    "job resume": Verb(
        "tui.run_job:resume",
        "go on with a job: one that was cut short, paused, or has rows to try again",
        f"{PROGRAM} job resume 8184e894",
        _job_change,
        options=RUNS | {"--progress"},
    ),
    "job pause": Verb(
        "tui.job_verbs:pause",
        "start no further rows; those at work go on to their ends",
        f"{PROGRAM} job pause 8184e894",
        _job_change,
    ),
    "job cancel": Verb(
        "tui.job_verbs:cancel",
        "end a job: workers are stopped, rows not started stay pending",
        f"{PROGRAM} job cancel 8184e894 --dry-run",
        _job_change,
    ),
    "job retry": Verb(
        "tui.job_verbs:retry",
        "put failed rows back into the queue",
        f"{PROGRAM} job retry 8184e894 --row row-12",
        _job_retry,
    ),
    "job skip": Verb(
        "tui.job_verbs:skip",
        "take rows out of a job that nobody works on",
        f"{PROGRAM} job skip 8184e894 --row row-12",
        _job_skip,
    ),
    "job set": Verb(
        "tui.job_verbs:change",
        "change how many rows of a job are worked on side by side",
        f"{PROGRAM} job set 8184e894 --max-concurrency 32",
        _job_set,
    ),
    "job export": Verb(
        "tui.job_verbs:export",
        "write a job's rows and results, at any moment",
        f"{PROGRAM} job export 8184e894 --format jsonl --output rows.jsonl",
        _job_export,
    ),
    "session list": Verb(
        "tui.run_session:show_list", "swarms in the store, newest first", f"{PROGRAM} session list"
    ),
    "session show": Verb(
        "tui.run_session:show_one",
        "the transcript of one agent",
        f"{PROGRAM} session show 019c2f7e-4a10-7b2c",
        _one("THREAD", "thread id of an agent, or its first letters"),
    ),
    "session tree": Verb(
        "tui.run_session:show_tree",
        "the agents of a swarm, parents before children",
        f"{PROGRAM} session tree 019c2f7e-4a10-7b2c --json",
        _one("ID", "id of a swarm or agent, or its first letters"),
    ),
    "doctor": Verb(
        "tui.run_doctor:run",
        "look at terminal, sandbox, folders, store, engines, keys and server",
        f"{PROGRAM} doctor --json",
        options=MODEL | {"--json", "--sandbox", "-C"},
    ),
    "completion": Verb(
        "tui.run_completion:run",
        "a completion script for a shell, on standard output",
        f"{PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}",
        _completion,
        options=frozenset(),
    ),
    "scripted-server": Verb(
        "tui.run_server:run",
        "the offline model as a Responses server on this machine",
        f"{PROGRAM} scripted-server --port 8099 --scenario count-lines",
        _server,
        options=frozenset(),
    ),
}
