"""`watchroom completion bash|zsh|fish`: a script made from the same verbs and parsers that the program uses.

All three scripts work alike: find the verb among the words before the cursor (options and their values
skipped, as `cli.find_verb` does), then offer its second words, its options, or what an option's value may be.
"""

from __future__ import annotations

import shlex
from argparse import SUPPRESS, Action, Namespace
from typing import NamedTuple

from tui import cli, exits
from tui.verbs import VERBS


class Value(NamedTuple):
    """What an option or an argument takes: one of `words`, or a "file", "folder", "host" or "variable"
    (`kind`), or something that no shell can know (both empty)."""

    kind: str
    words: tuple[str, ...] = ()


class Option(NamedTuple):
    flags: tuple[str, ...]
    value: Value | None
    """None: the option stands alone."""
    summary: str


class Words(NamedTuple):
    """One verb as a shell sees it."""

    verb: str
    summary: str
    options: tuple[Option, ...]
    argument: Value


def run(args: Namespace) -> int:
    write = {"bash": bash, "zsh": zsh, "fish": fish}[args.shell]
    print(write(known()), end="")
    return exits.OK


def known() -> list[Words]:
    """The verbs that the help lists, with the options that it lists for them."""
    found = []
    for name, verb in VERBS.items():
        if verb.hidden:
            continue
        # argparse has no public way to list what was added to a parser.
        actions = [action for action in cli.parser_of(name)._actions if action.help != SUPPRESS]
        options = [
            Option(tuple(action.option_strings), _value(action), _summary(action))
            for action in actions
            if action.option_strings
        ]
        arguments = [_value(action) or Value("") for action in actions if not action.option_strings]
        argument = next((value for value in arguments if value.kind or value.words), Value(""))
        found.append(Words(name, verb.summary, tuple(options), argument))
    return found


def _summary(action: Action) -> str:
    return action.help or ""


def _value(action: Action) -> Value | None:
    if action.option_strings and action.nargs == 0:
        return None
    if action.choices is not None:
        return Value("", tuple(str(choice) for choice in action.choices))
    metavar = str(action.metavar or "")
    for kind, names in _KINDS.items():
        if metavar in names:
            return Value(kind)
    return Value("")


_KINDS = {"file": ("FILE", "INPUT", "NAME|FILE"), "folder": ("DIR",), "host": ("HOST",), "variable": ("VAR",)}


def _groups(verbs: list[Words]) -> dict[str, list[tuple[str, str]]]:
    """Second words and their summaries by first word."""
    found: dict[str, list[tuple[str, str]]] = {}
    for words in verbs:
        first, _, second = words.verb.partition(" ")
        if second:
            found.setdefault(first, []).append((second, words.summary))
    return found


def _first_words(verbs: list[Words]) -> list[tuple[str, str]]:
    groups = _groups(verbs)
    names = dict.fromkeys(words.verb.split()[0] for words in verbs if words.verb)
    single = {words.verb: words.summary for words in verbs}
    return [
        (name, single.get(name) or ", ".join(second for second, _ in groups.get(name, []))) for name in names
    ]


def _options(verbs: list[Words]) -> dict[str, Option]:
    """Every option that takes a value, by flag."""
    return {
        flag: option
        for words in verbs
        for option in words.options
        if option.value is not None
        for flag in option.flags
    }


def _by_value(verbs: list[Words]) -> list[tuple[list[str], Value]]:
    """Patterns for `VERB FLAG` that take the same value, for values that a shell can offer. A flag that means
    something else to another verb is named with its verb."""
    meant: dict[str, dict[Value, list[str]]] = {}
    for words in verbs:
        for option in words.options:
            if option.value is not None:
                for flag in option.flags:
                    meant.setdefault(flag, {}).setdefault(option.value, []).append(words.verb)
    found: dict[Value, list[str]] = {}
    for flag, values in meant.items():
        for value, names in values.items():
            if value.kind or value.words:
                named = [shlex.quote(f"{name} {flag}") for name in names]
                found.setdefault(value, []).extend(named if len(values) > 1 else [f"*' {flag}'"])
    return [(patterns, value) for value, patterns in found.items()]


# --- bash ------------------------------------------------------------------------------------------------

_BASH = {
    "file": '_watchroom_offer -f -- "$cur"; compopt -o filenames 2> /dev/null',
    "folder": '_watchroom_offer -d -- "$cur"; compopt -o filenames 2> /dev/null',
    "host": '_watchroom_offer -A hostname -- "$cur"',
    "variable": '_watchroom_offer -e -- "$cur"',
}


def _bash_value(value: Value) -> str:
    if value.words:
        return f'_watchroom_offer -W {shlex.quote(" ".join(value.words))} -- "$cur"'
    return _BASH.get(value.kind, ":")


def bash(verbs: list[Words]) -> str:
    """For bash 3.2 and later; needs no other completion package."""
    takes = "|".join(_options(verbs))
    values = [
        f"        {'|'.join(patterns)}) {_bash_value(value)}; return ;;"
        for patterns, value in _by_value(verbs)
    ]
    groups = _groups(verbs)
    seconds = [
        f"        {first}) _watchroom_offer -W {shlex.quote(' '.join(word for word, _ in words))}"
        ' -- "$cur"; return ;;'
        for first, words in groups.items()
    ]
    cases = []
    for words in verbs:
        flags = " ".join(flag for option in words.options for flag in option.flags)
        shown = _bash_value(words.argument)
        cases.append(
            f"        {shlex.quote(words.verb)}) options={shlex.quote(flags)}; plain='{_q(shown)}' ;;"
        )
    first = " ".join(name for name, _ in _first_words(verbs))
    return _BASH_SCRIPT.format(
        takes=takes,
        values="\n".join(values),
        groups="|".join(groups),
        seconds="\n".join(seconds),
        cases="\n".join(cases),
        first=first,
    )


def _q(text: str) -> str:
    return text.replace("'", "'\\''")


_BASH_SCRIPT = """\
# bash completion for watchroom, made by: watchroom completion bash
_watchroom_offer() {{
    local found
    while IFS= read -r found; do COMPREPLY+=("$found"); done < <(compgen "$@")
}}
_watchroom() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" option="" verb="" ended="" word i options plain
    COMPREPLY=()
    [[ $cur == "=" ]] && cur=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${{COMP_WORDS[i]}}"
        if [[ $word == "=" ]]; then continue; fi
        if [[ -n $option ]]; then option=""; continue; fi
        if [[ -n $ended ]]; then continue; fi
        case "$word" in
        --) ended=1 ;;
        {takes}) option="$word" ;;
        -?*) ;;
        *)
            case "$verb" in
            '') verb="$word" ;;
            {groups}) verb="$verb $word" ;;
            esac ;;
        esac
    done
    if [[ -n $option ]]; then
        case "$verb $option" in
{values}
        esac
        return
    fi
    case "$verb" in
{cases}
        *) options='' plain=':' ;;
    esac
    if [[ $cur == -* && -z $ended ]]; then
        _watchroom_offer -W "$options" -- "$cur"
        return
    fi
    case "$verb" in
{seconds}
    '') [[ -z $ended ]] && _watchroom_offer -W '{first}' -- "$cur" ;;
    esac
    eval "$plain"
}}
complete -F _watchroom watchroom
"""


# --- zsh -------------------------------------------------------------------------------------------------

_ZSH = {
    "file": "_files",
    "folder": "_files -/",
    "host": "_hosts",
    "variable": "_parameters -g '*export*'",
}


def _zsh_value(value: Value) -> str:
    if value.words:
        return "compadd -- " + " ".join(shlex.quote(word) for word in value.words)
    return _ZSH.get(value.kind, ":")


def _described(pairs: list[tuple[str, str]]) -> str:
    return " ".join(shlex.quote(f"{word.replace(':', chr(92) + ':')}:{text}") for word, text in pairs)


def zsh(verbs: list[Words]) -> str:
    groups = _groups(verbs)
    values = [f"      {'|'.join(patterns)}) {_zsh_value(value)} ;;" for patterns, value in _by_value(verbs)]
    cases = []
    for words in verbs:
        pairs = [(flag, option.summary) for option in words.options for flag in option.flags]
        shown = _zsh_value(words.argument)
        cases.append(
            f"    {shlex.quote(words.verb)}) flags=({_described(pairs)}); plain={shlex.quote(shown)} ;;"
        )
    seconds = [
        f"    {first}) offers=({_described(words)}); _describe verb offers; return ;;"
        for first, words in groups.items()
    ]
    return _ZSH_SCRIPT.format(
        takes="|".join(_options(verbs)),
        values="\n".join(values),
        groups="|".join(groups),
        cases="\n".join(cases),
        seconds="\n".join(seconds),
        first=_described(_first_words(verbs)),
    )


_ZSH_SCRIPT = """\
#compdef watchroom
# zsh completion for watchroom, made by: watchroom completion zsh
_watchroom() {{
  local option="" verb="" ended="" word plain i
  local -a flags offers
  for ((i = 2; i < CURRENT; i++)); do
    word="${{words[i]}}"
    if [[ -n $option ]]; then option=""; continue; fi
    if [[ -n $ended ]]; then continue; fi
    case "$word" in
      --) ended=1 ;;
      {takes}) option="$word" ;;
      -?*) ;;
      *)
        case "$verb" in
          '') verb="$word" ;;
          {groups}) verb="$verb $word" ;;
        esac ;;
    esac
  done
  if [[ -z $option && -z $ended && $PREFIX == --*=* ]]; then
    option="${{PREFIX%%=*}}"
    compset -P '*='
  fi
  if [[ -n $option ]]; then
    case "$verb $option" in
{values}
    esac
    return
  fi
  case "$verb" in
{cases}
    *) flags=(); plain=: ;;
  esac
  if [[ -z $ended && $PREFIX == -* ]]; then
    _describe -o option flags
    return
  fi
  case "$verb" in
{seconds}
    '') if [[ -z $ended ]]; then offers=({first}); _describe verb offers; fi ;;
  esac
  eval "$plain"
}}
if [[ $funcstack[1] == _watchroom ]]; then _watchroom "$@"; else compdef _watchroom watchroom; fi
"""


# --- fish ------------------------------------------------------------------------------------------------

_FISH = {
    "file": "-r -F",
    "folder": "-x -a '(__fish_complete_directories (commandline -ct))'",
    "host": "-x -a '(__fish_print_hostnames)'",
    "variable": "-x -a '(set -xn)'",
}


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _fish_takes(value: Value) -> str:
    if value.words:
        return f"-x -a {_fish_quote(' '.join(value.words))}"
    return _FISH.get(value.kind, "-x")


def fish(verbs: list[Words]) -> str:
    groups = _groups(verbs)
    lines = [
        f"complete -c watchroom -n '__watchroom_verb_is \"\"' -a {_fish_quote(name)} -d {_fish_quote(text)}"
        for name, text in _first_words(verbs)
    ]
    for first, seconds in groups.items():
        lines += [
            f"complete -c watchroom -n '__watchroom_verb_is {first}' -a {_fish_quote(name)}"
            f" -d {_fish_quote(text)}"
            for name, text in seconds
        ]
    for words in verbs:
        when = f"-n {_fish_quote(f'__watchroom_verb_is {chr(34)}{words.verb}{chr(34)}')}"
        for option in words.options:
            spelled = " ".join(_fish_flag(flag) for flag in option.flags)
            takes = f" {_fish_takes(option.value)}" if option.value is not None else ""
            lines.append(f"complete -c watchroom {when} {spelled}{takes} -d {_fish_quote(option.summary)}")
        if words.argument.words:
            lines.append(f"complete -c watchroom {when} -a {_fish_quote(' '.join(words.argument.words))}")
        elif words.argument.kind == "file":
            lines.append(f"complete -c watchroom {when} -F")
    return _FISH_SCRIPT.format(
        takes=" ".join(_options(verbs)), groups=" ".join(groups), lines="\n".join(lines)
    )


def _fish_flag(flag: str) -> str:
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


_FISH_SCRIPT = """\
# fish completion for watchroom, made by: watchroom completion fish
function __watchroom_verb_is
    set -l verb
    set -l skip 0
    set -l words (commandline -opc)
    set -e words[1]
    for word in $words
        if test $skip = 1
            set skip 0
            continue
        end
        if test "$word" = --
            break
        end
        switch $word
            case {takes}
                set skip 1
            case '-*'
            case '*'
                if test (count $verb) -eq 0
                    set verb $word
                else if contains -- "$verb" {groups}
                    set verb "$verb $word"
                end
        end
    end
    test "$verb" = "$argv[1]"
end
complete -c watchroom -f
{lines}
"""
