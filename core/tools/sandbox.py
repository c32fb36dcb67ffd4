"""Commands in bubblewrap: a read-only system, a writable workspace, no network, no secrets (decision 29).

Reference for the options: bwrap(1), 0.8. Order matters: later mounts lie on top of earlier ones.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.clock import Clock, SystemClock
from core.safety.text import clean_line, shorten
from core.tools.environment import child_environment, search_path
from core.tools.process import StartError, run

Mode = Literal["read-only", "workspace-write", "off"]

PRIVATE = ("/tmp", "/var/tmp", "/run")
"""Empty inside. /run and /tmp also hold sockets (containers, agents of keys, our own), and a socket can be
connected to on a read-only mount."""
KEPT = ("/run/current-system",)
"""Below PRIVATE but part of the system: NixOS has its programs there."""
PROTECTED = (".git", ".watchroom")
"""Of the workspace, read-only also where the workspace is writable: both name programs to run later."""
SECRETS = (
    ".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".netrc", ".npmrc", ".pypirc", ".git-credentials",
    ".config/watchroom", ".local/share/watchroom", ".local/state/watchroom",
    ".config/gcloud", ".config/gh", ".config/git/credentials",
    ".cargo/credentials", ".cargo/credentials.toml", ".codex/auth.json", ".claude/.credentials.json",
    ".password-store", ".local/share/keyrings", ".mozilla", ".config/google-chrome", ".config/chromium",
    ".bash_history", ".zsh_history", ".python_history",
)  # fmt: skip
"""Below the user's home: unreadable inside."""
PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A bubblewrap that was seen to work."""

    program: str

    @classmethod
    async def detect(cls, cwd: Path, clock: Clock | None = None) -> tuple[Sandbox | None, str]:
        """The sandbox of this machine, or None and why there is none. Runs a probe: call it once."""
        program = find_program("bwrap", cwd)
        if program is None:
            return None, "bubblewrap (bwrap) is not installed"
        sandbox = cls(program)
        argv = sandbox.wrap(
            ["/bin/cat", "/proc/self/mounts"], mode="read-only", cwd=Path("/"), workspace=None
        )
        try:
            probe = await run(
                argv,
                cwd=Path("/"),
                env=child_environment(),
                clock=clock or SystemClock(),
                timeout=PROBE_SECONDS,
                limit=1_000_000,
                guard=False,
            )
        except StartError as error:
            return None, f"bubblewrap does not work here: {error}"
        if probe.code == 0:
            writable = _writable_mounts(probe.output)
            if not writable:
                return sandbox, ""
            return None, f"bubblewrap leaves {' and '.join(writable)} writable here"
        said = "it timed out" if probe.timed_out else shorten(clean_line(probe.output), 200)
        return None, f"bubblewrap does not work here: {said or f'exit code {probe.code}'}"

    def wrap(
        self,
        argv: Sequence[str],
        *,
        mode: Mode,
        cwd: Path,
        workspace: Path | None,
        writable: Iterable[Path] = (),
        hidden: Iterable[Path] = (),
    ) -> list[str]:
        """The command line that runs `argv` inside, in `cwd`. Paths are resolved here.

        `workspace` and `writable` can be written to (mode workspace-write); `hidden` and the well-known
        secrets of HOME cannot be read. Raises ValueError for mode "off".
        """
        if mode == "off":
            raise ValueError("nothing is wrapped with the sandbox off")
        bind = "--bind" if mode == "workspace-write" else "--ro-bind"
        roots = [path.resolve() for path in (workspace, *writable) if path is not None]
        line = [
            self.program,
            # As root bwrap keeps capabilities unless told otherwise, and with them a way out.
            *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *("--cap-drop", "ALL", "--die-with-parent", "--new-session"),
            *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
            # bwrap covers /proc/sys only where it looks writable to it, which misses it for root: without
            # this, root inside could set kernel.core_pattern, and with it run a program outside.
            *("--ro-bind-try", "/proc/sys", "/proc/sys"),
            *("--ro-bind-try", "/proc/sysrq-trigger", "/proc/sysrq-trigger"),
        ]
        for folder in PRIVATE:
            if os.path.isdir(folder) and not os.path.islink(folder):
                line += ["--tmpfs", folder]
        for folder in KEPT:
            line += ["--ro-bind-try", folder, folder]
        unreadable = _existing((*_home_secrets(), *hidden))
        for path in unreadable:
            line += _hide(path)
        cwd = cwd.resolve()
        mounted = list(roots)
        if any(cwd.is_relative_to(folder) for folder in ("/tmp", "/var/tmp")) and not any(
            cwd.is_relative_to(other) for other in (*roots, *unreadable)
        ):
            line += ["--ro-bind", str(cwd), str(cwd)]
            mounted.append(cwd)
        for root in roots:
            line += [bind, str(root), str(root)]
        for path in unreadable:
            # Again where something was mounted over it.
            if any(path != root and path.is_relative_to(root) for root in mounted):
                line += _hide(path)
        if workspace is not None and mode == "workspace-write":
            for name in PROTECTED:
                path = (workspace / name).resolve()
                if path.exists() and any(path.is_relative_to(root) for root in roots):
                    line += ["--ro-bind", str(path), str(path)]
        return [*line, "--setenv", "TMPDIR", "/tmp", "--chdir", str(cwd), "--", *argv]


def _writable_mounts(mounts: str) -> list[str]:
    """Of what must be read-only inside, what is not, by the text of /proc/self/mounts."""
    options: dict[str, set[str]] = {}
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 3:
            options[fields[1]] = set(fields[3].split(","))  # a later mount lies on top
    return [name for name in ("/", "/proc/sys") if os.path.isdir(name) and "ro" not in options.get(name, ())]


def find_program(name: str, cwd: Path) -> str | None:
    """`name` on PATH, but never one that lies in `cwd`: a workspace must not bring its own sandbox."""
    inside = cwd.resolve()
    for folder in search_path(os.environ).split(os.pathsep):
        path = Path(folder, name)
        if os.access(path, os.X_OK) and path.is_file() and not path.resolve().is_relative_to(inside):
            return str(path)
    return None


def secrets_below(home: str) -> list[Path]:
    """Where well-known secrets are in somebody's home, whether or not they exist."""
    return [Path(home, name) for name in SECRETS] if os.path.isabs(home) else []


def _home_secrets() -> list[Path]:
    """In HOME and in the home that the system knows: HOME may be unset, or lead elsewhere."""
    homes = {os.environ.get("HOME", "")}
    with suppress(KeyError):  # this user id has no entry
        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    return [path for home in homes for path in secrets_below(home)]


def _existing(paths: Iterable[Path]) -> list[Path]:
    """Resolved, without repeats, outer ones first. What does not exist cannot be mounted over."""
    found: set[Path] = set()
    for path in paths:
        try:
            resolved = path.resolve()
            if resolved.exists() and resolved != Path("/"):
                found.add(resolved)
        except OSError:
            continue  # it cannot even be looked at (a dead mount): neither can the command
    kept: list[Path] = []
    for path in sorted(found):
        if not any(path.is_relative_to(outer) for outer in kept):
            kept.append(path)
    return kept


def _hide(path: Path) -> list[str]:
    return ["--tmpfs", str(path)] if path.is_dir() else ["--ro-bind", "/dev/null", str(path)]
