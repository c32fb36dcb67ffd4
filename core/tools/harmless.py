"""Whether a command line only looks: the list that policy `untrusted` runs without asking.

Allow-lists throughout: a program, and of each program the options that neither write nor run anything. An
option that is not listed asks, so an abbreviation or next year's option does too. Operands that name files
must lie in the workspace (links followed) or in the system's own folders, and must not look like secrets.
This spares an operator questions. It is not the boundary; the sandbox is.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from core.tools.shellwords import Part, Unreadable, Word, read

MAX_MATCHES = 2000
SYSTEM = tuple(map(Path, ("/usr", "/bin", "/lib", "/lib64", "/sbin", "/etc/os-release", "/dev/null")))
"""Outside the workspace, yet public: what every installation of the system has."""
BUILTINS = frozenset({"cd", "echo", "pwd", "test", "[", "true", "false"})
_SECRET_NAMES = (
    ".env", ".env.*", "*.env", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12",
    "*.pfx", "*.keystore", "*.kdbx", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials",
    "credentials", "credentials.*", "secrets", "secrets.*", ".ssh", ".aws", ".gnupg", ".kube", ".docker",
)  # fmt: skip
_PUBLIC_NAMES = (".env.example", ".env.sample", ".env.template", ".env.dist", "*.pub")


class Asks(ValueError):
    """The command is not on the list. The text says why, to follow "…: "."""


class Rule(msgspec.Struct, frozen=True):
    """What a program may be given. Long options: `name` takes nothing, `name=` a value, `name?` maybe one."""

    flags: str = ""
    valued: str = ""
    """Short options with a value. None of them names a file."""
    longs: str = ""
    operands: Literal["files", "pattern", "text", "format", "none"] = "files"
    """pattern: the first operand is one (unless -e gave it), the others are files. format: +FORMAT only."""
    most: int | None = None
    number: bool = False
    """-20 means -n 20."""


# Left out of git: what writes, what runs a pager or a program (-O, --ext-diff, --output, -c), `config` and
# `remote -v` (tokens). A repository's own config may still name a diff program: clones do not carry one.
_GIT_DIFF = Rule(
    "puswbzaMCqriEFPcm",
    "UnSGL",
    "oneline stat? name-only name-status graph all decorate? no-color color? patch no-patch cached staged "
    "shortstat numstat summary follow reverse since= until= after= before= author= grep= max-count= skip= "
    "format= pretty? abbrev-commit abbrev? date= merges no-merges first-parent word-diff? unified= "
    "ignore-all-space ignore-space-change ignore-blank-lines diff-filter= relative no-ext-diff "
    "no-textconv no-renames minimal patience histogram exit-code quiet check dirstat? "
    "branches? tags? remotes? source topo-order date-order "
    "left-right raw find-renames? full-index no-prefix no-decorate compact-summary",
    number=True,
)
GIT = {
    "status": Rule("sbvuz", "", "short branch porcelain? untracked-files? ignored? long show-stash verbose"),
    "diff": _GIT_DIFF,
    "log": _GIT_DIFF,
    "show": _GIT_DIFF,
    "branch": Rule("arv", "", "all remotes verbose show-current no-color color? sort=", "none"),
    "tag": Rule("", "", "list sort= no-color", "none"),
    "rev-parse": Rule("", "", "show-toplevel abbrev-ref? short? is-inside-work-tree git-dir verify quiet"),
    "ls-files": Rule("cmodsitvz", "", "cached modified others deleted stage ignored exclude-standard"),
    "blame": Rule("wselnMC", "L", "line-porcelain porcelain show-email"),
    "describe": Rule("", "", "tags all always long dirty? abbrev= match="),
}
PROGRAMS = {
    "ls": Rule(
        "aAbBcCdfFgGhHiklLmnNopqQrRsStuUvxXZ1",
        "ITw",
        "all almost-all human-readable recursive reverse size color? group-directories-first sort= time= "
        "full-time time-style= directory classify? inode numeric-uid-gid ignore= hide=",
    ),
    "cat": Rule("AbeEnstTuv", "", "number number-nonblank show-all show-ends show-tabs squeeze-blank"),
    "head": Rule("qvz", "nc", "lines= bytes= quiet silent verbose", number=True),
    "tail": Rule("qvzrfF", "nc", "lines= bytes= quiet silent verbose follow?", number=True),
    "wc": Rule("clmLw", "", "bytes chars lines words max-line-length"),
    "nl": Rule("p", "bdfhilnsvw", "body-numbering= number-format= number-width= number-separator="),
    "grep": Rule(
        "EFGPivwxcLlqshHnobaTUzrIyZ",
        "eABCmdD",
        "extended-regexp fixed-strings perl-regexp ignore-case invert-match word-regexp line-regexp count "
        "files-with-matches files-without-match only-matching quiet no-messages with-filename no-filename "
        "line-number text recursive include= exclude= exclude-dir= after-context= before-context= context= "
        "color? colour? max-count= regexp= null",
        "pattern",
        number=True,
    ),
    "rg": Rule(
        "iSsvwxFclnNoqHIUPp0",
        "egtTABCmMdj",
        "ignore-case smart-case case-sensitive invert-match word-regexp line-regexp fixed-strings count "
        "count-matches files-with-matches files-without-match line-number no-line-number only-matching quiet "
        "with-filename no-filename multiline pcre2 pretty regexp= glob= iglob= type= type-not= "
        "after-context= before-context= context= max-count= max-columns= max-depth= files type-list stats "
        "sort= sortr= color= heading no-heading json column trim no-config",
        "pattern",
    ),
    "sort": Rule(
        "bdfghiMnRrVcCmsuz",
        "kt",
        "ignore-leading-blanks dictionary-order ignore-case general-numeric-sort human-numeric-sort "
        "month-sort numeric-sort random-sort reverse version-sort check? stable unique key= field-separator= "
        "zero-terminated",
    ),
    "uniq": Rule(
        "cdDiuz", "fsw", "count repeated unique ignore-case skip-fields= skip-chars= check-chars=", most=1
    ),
    "cut": Rule("nsz", "bcdf", "bytes= characters= delimiter= fields= only-delimited output-delimiter="),
    "tr": Rule("cCdst", "", "complement delete squeeze-repeats truncate-set1", "text"),
    "tac": Rule("br", "s", "before regex separator="),
    "rev": Rule(),
    "comm": Rule("123iz", "", "check-order nocheck-order total output-delimiter="),
    "cmp": Rule("bls", "n", "print-bytes verbose quiet silent bytes="),
    "diff": Rule(
        "qsuyciwbBEZaNpt",
        "UCW",
        "brief report-identical-files unified? context? side-by-side ignore-case ignore-all-space "
        "ignore-space-change ignore-blank-lines text new-file color? width= suppress-common-lines",
        number=True,
    ),
    "stat": Rule("fLtx", "c", "format= printf= file-system terse dereference"),
    "file": Rule("bihkLNn0", "", "brief mime mime-type mime-encoding dereference no-dereference extension"),
    "du": Rule("abchHkmlsSx0", "dBt", "all apparent-size bytes total human-readable summarize max-depth= si"),
    "df": Rule("ahHiklmPT", "txB", "all human-readable si inodes local portability print-type total"),
    "md5sum": Rule("bt", "", "binary text tag"),
    "sha1sum": Rule("bt", "", "binary text tag"),
    "sha256sum": Rule("bt", "", "binary text tag"),
    "sha512sum": Rule("bt", "", "binary text tag"),
    "cksum": Rule(),
    "realpath": Rule("emsqz", "", "canonicalize-existing canonicalize-missing no-symlinks quiet"),
    "readlink": Rule("femnqsvz", "", "canonicalize canonicalize-existing canonicalize-missing no-newline"),
    "basename": Rule("az", "s", "multiple suffix=", "text"),
    "dirname": Rule("z", "", "zero", "text"),
    "date": Rule("uRI", "d", "date= utc universal rfc-email iso-8601? rfc-3339=", "format"),
    "seq": Rule("w", "fs", "equal-width format= separator=", "text"),
    "echo": Rule("neE", "", "", "text"),
    "pwd": Rule("LP", "", "", "none"),
    "true": Rule("", "", "", "text"),
    "false": Rule("", "", "", "text"),
    "uname": Rule("asnrvmpio", "", "all", "none"),
    "whoami": Rule("", "", "", "none"),
    "id": Rule("ugGnr", "", "user group groups name real", "text"),
    "nproc": Rule("", "", "all", "none"),
    "uptime": Rule("ps", "", "", "none"),
    "which": Rule("a", "", "all", "text"),
}
_FIND_ALONE = (
    "-print -print0 -ls -empty -not -o -or -a -and -prune -readable -writable -executable -xdev -mount",
    "-depth -daystart -true -false -quit ! ( )",
)
_FIND_VALUED = (
    "-name -iname -path -ipath -wholename -type -xtype -size -mtime -atime -ctime -mmin -amin -cmin",
    "-maxdepth -mindepth -perm -user -group -regex -iregex -regextype -links -inum -printf",
)
_TEST_WORD = re.compile(
    r"-[bcdefghkLOGNprsSutwxzn]|-(?:eq|ne|lt|le|gt|ge|nt|ot|ef)|-?\d+|[^-$\[(`][^$\[(`]*|"
)
"""Not -v and -R: bash evaluates their operands, substitutions included."""


class Places(msgspec.Struct, frozen=True):
    """Where a command runs: its workspace (resolved), and every folder that may be current at its part."""

    workspace: Path
    current: tuple[Path, ...]
    path: str
    """PATH of the command."""


def check(command: str, *, cwd: Path, workspace: Path, path: str) -> None:
    """Return if every part of `command` is on the list, else raise Asks."""
    try:
        parts = read(command)
    except Unreadable as error:
        raise Asks(str(error)) from None
    places = Places(workspace.resolve(), (cwd.resolve(),), path)
    for index, part in enumerate(parts):
        words = part.words
        piped = part.operator == "|" or (index + 1 < len(parts) and parts[index + 1].operator == "|")
        if words[0].text == "cd" and not words[0].glob:
            target = _cd(words, places)
            if not piped:
                # It may fail, so the old folder stays possible.
                both = dict.fromkeys((*places.current, *target))
                places = msgspec.structs.replace(places, current=tuple(both))
        else:
            _check_part(part, places)


def _cd(words: Sequence[Word], places: Places) -> list[Path]:
    if len(words) != 2 or words[1].glob or words[1].text[:1] in ("-", ""):
        raise Asks("this form of cd is not on the list")
    name = words[1].text
    if ".." in name.split("/"):
        # A shell's .. undoes the name, not the link; only it knows where that leads.
        raise Asks("cd goes up")
    _check_file(name, places)
    return [(folder / name).resolve() for folder in places.current]


def _check_part(part: Part, places: Places) -> None:
    name = part.words[0]
    program = name.text
    if name.glob or (program not in PROGRAMS and program not in ("git", "find", "test", "[")):
        raise Asks(f"{program} is not on the list of harmless commands")
    if program not in BUILTINS:
        found = shutil.which(program, path=places.path)
        if found is not None and Path(found).resolve().is_relative_to(places.workspace):
            raise Asks(f"{program} would run a program of the workspace")
    args = [text for word in part.words[1:] for text in _expand(word, places)]
    if program == "find":
        _check_find(args, places)
    elif program in ("test", "["):
        if program == "[" and args[-1:] != ["]"]:
            raise Asks("[ without ] is not on the list")
        for arg in args[:-1] if program == "[" else args:
            if not _TEST_WORD.fullmatch(arg):
                raise Asks(f"{program} {arg} is not on the list")
    elif program == "git":
        rule = GIT.get(args[0]) if args else None
        if rule is None:
            raise Asks(f"git {args[0] if args else ''} is not on the list".replace("  ", " "))
        _check_args(f"git {args[0]}", rule, args[1:], places)
    else:
        _check_args(program, PROGRAMS[program], args, places)


def _expand(word: Word, places: Places) -> list[str]:
    """What the shell will pass for this word: itself, or the file names that it matches now."""
    if not word.glob:
        return [word.text]
    steps = word.text.split("/")
    if word.quoted_glob or "[" in word.text or "\\" in word.text:
        raise Asks("its file name pattern is not simple")
    if any(step.startswith(".") and ("*" in step or "?" in step) for step in steps) or ".." in steps:
        raise Asks("its file name pattern may lead out of the folder")
    if word.text.startswith("/"):
        raise Asks("its file name pattern is not below the current folder")
    found = (name for folder in places.current for name in glob.iglob(word.text, root_dir=folder))
    matches = list(itertools.islice(found, MAX_MATCHES + 1))
    if len(matches) > MAX_MATCHES:
        raise Asks("its file name pattern matches too much")
    return [word.text, *matches]


def _check_args(program: str, rule: Rule, args: Sequence[str], places: Places) -> None:
    """Read `args` as getopt would, options anywhere. Values are checked as files too: where options must come
    first (macOS), a later option and its value are operands."""
    longs = {name.rstrip("=?"): name[-1] for name in rule.longs.split()}
    operands: list[str] = []
    values: list[str] = []
    patterned = False
    left = iter(args)
    for arg in left:
        if arg == "--":
            operands += left
        elif arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            kind = longs.get(name)
            if kind is None or (equals and kind not in "=?"):
                raise Asks(f"{program} {arg} is not on the list")
            if equals or kind == "=":
                values.append(value if equals else next(left, ""))
            patterned = patterned or name in ("regexp", "files", "type-list")
        elif rule.number and re.fullmatch(r"-\d+", arg):
            continue
        elif arg.startswith("-") and len(arg) > 1:
            letter = _check_cluster(program, rule, arg, left, values)
            patterned = patterned or letter == "e"
        else:
            operands.append(arg)
    _check_operands(program, rule, operands, patterned, places)
    for value in values:
        if program.startswith("git ") and "%G" in value:
            raise Asks("%G would run a signature checker")
        _check_file(value, places)


def _check_cluster(program: str, rule: Rule, arg: str, left: object, values: list[str]) -> str:
    """Check a word of short options, take the value of the last from `left`; that option's letter or ''."""
    for at, letter in enumerate(arg[1:], start=2):
        if letter in rule.valued:
            value = arg[at:]
            values.append(value if value else next(left, ""))  # type: ignore[call-overload]
            return letter
        if letter not in rule.flags:
            raise Asks(f"{program} -{letter} is not on the list")
    return ""


def _check_operands(program: str, rule: Rule, operands: list[str], patterned: bool, places: Places) -> None:
    if rule.operands == "none" and operands:
        raise Asks(f"{program} {operands[0]} may change something")
    if rule.operands == "format" and not all(operand.startswith("+") for operand in operands):
        raise Asks(f"{program} {operands[0]} may change something")
    if rule.most is not None and len(operands) > rule.most:
        raise Asks(f"{program} with {len(operands)} operands writes to the last")
    if rule.operands == "pattern" and not patterned:
        operands = operands[1:]
    if rule.operands in ("files", "pattern"):
        for operand in operands:
            _check_file(operand, places)


def _check_find(args: Sequence[str], places: Places) -> None:
    left = iter(args)
    expression = False
    for arg in left:
        expression = expression or arg.startswith("-") or arg in ("!", "(", ")")
        if not expression:
            _check_file(arg, places)
        elif arg in " ".join(_FIND_VALUED).split():
            next(left, "")
        elif arg not in " ".join(_FIND_ALONE).split():
            raise Asks(f"find {arg} is not on the list")


def _check_file(name: str, places: Places) -> None:
    """Raise Asks unless `name`, from wherever the command may be, is a file that anybody may see."""
    if name in ("", "-"):
        return
    for folder in places.current:
        try:
            target = (folder / name).resolve()
        except (OSError, ValueError, RuntimeError):
            raise Asks(f"{name} cannot be looked at") from None
        roots = (places.workspace, *SYSTEM)
        root = next((root for root in roots if target == root or target.is_relative_to(root)), None)
        if root is None:
            raise Asks(f"{name} lies outside the workspace")
        if root == places.workspace:
            _check_secret(name, (*target.relative_to(root).parts, *re.split(r"[/:]", name)))


def _check_secret(name: str, parts: Sequence[str]) -> None:
    lowered = [part.lower() for part in parts]
    for part in lowered:
        if any(fnmatch.fnmatchcase(part, p) for p in _SECRET_NAMES) and not any(
            fnmatch.fnmatchcase(part, p) for p in _PUBLIC_NAMES
        ):
            raise Asks(f"{name} may hold secrets")
    if ".git" in lowered and lowered[-1] == "config":
        raise Asks(f"{name} may hold secrets")
