"""What every script's command line does: name and flags to settings, one line for bad input.

Exit codes: 0 only when the work is whole, 2 for bad input, 1 for a run that failed, 128 + signal
after a signal (the state was saved).
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import tyro
from tqdm import tqdm

from data.files import check_local
from get.errors import InputError
from pipeline.jobs.launcher import end_with_launcher, share_cores
from pipeline.recipes import RECIPES, Recipe
from pipeline.recipes.own import load

Config = TypeVar("Config")

RESOURCE_ERRORS = (
    *(errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EFBIG),
    errno.EEXIST,  # a file where a folder shall be
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN),  # a mount that has gone
)


class Failed(RuntimeError):
    """A run that cannot go on (a loss that is not finite, say); the message is complete."""


class Signals:
    """Remembers the first signal that asks to stop, so that work can stop at a good place.

    INT is Ctrl-C, HUP a closed terminal (unless nohup has it ignored), TERM and USR1 come from
    schedulers. A second Ctrl-C stops at once: everything on disk is whole at any moment.
    """

    def __init__(self) -> None:
        """Nothing received yet."""
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        self.received = self.received or number

    @staticmethod
    def exit(number: int, saved: str) -> NoReturn:
        """Say what is saved and exit with 128 + signal."""
        name = signal.Signals(number).name
        print(f"stopped by {name}: {saved}; run the same command to continue", file=sys.stderr)
        sys.exit(128 + number)


def check_arguments(
    settings: Callable[[Mapping[str, Recipe]], Mapping[str, object]], default: str | None = None
) -> None:
    """Answer `--help` and typing errors now; scripts call this before they import torch."""
    end_with_code(lambda: parse(settings, default))


def run(
    main: Callable[[Config], None],
    settings: Callable[[Mapping[str, Recipe]], Mapping[str, Config]],
    default: str | None = None,
) -> None:
    """Parse the command line, call `main` with the settings, turn errors into exit codes.

    Args:
        main: The script's work.
        settings: See `parse`.
        default: See `parse`.
    """
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()  # diffusers shows one for every file it loads
    end_with_code(lambda: main(parse(settings, default)))


def end_with_code(work: Callable[[], object]) -> None:
    """Do the work of a script; turn errors into one line and an exit code."""
    name = Path(sys.argv[0]).stem
    end_with_launcher()
    share_cores()
    try:
        work()
    except InputError as error:
        _end(name, str(error), 2)
    except Failed as error:
        _end(name, str(error), 1)
    except KeyboardInterrupt:
        _end(name, "stopped by SIGINT; run the same command to continue", 128 + signal.SIGINT)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in RESOURCE_ERRORS:
            raise
        _end(name, f"expected to write {error.filename}, got: {error.strerror}", 2)


def progress_bar(total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True) -> tqdm:
    """Return a bar with rate and time left; in a log file it writes a line now and then only."""
    hidden: dict[str, Any] = {} if shown else {"disable": True}  # else TQDM_DISABLE decides
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
        **hidden,
    )


def parse(
    settings: Callable[[Mapping[str, Recipe]], Mapping[str, Config]], default: str | None = None
) -> Config:
    """Return the settings that the command line asks for: `SCRIPT NAME --flag value ...`.

    Args:
        settings: Gives the script's settings by name (`pipeline/recipes/recipe.py`).
        default: The name that flags alone start from, for scripts where it says little.

    Raises:
        InputError: If there are no such settings or the recipe file has none.
    """
    arguments = sys.argv[1:]
    if source := _take(arguments, "--recipes"):
        RECIPES.update(load(source))
    table = settings(RECIPES)
    if default and arguments and arguments[0].startswith("--") and arguments[0] != "--help":
        arguments.insert(0, default)
    script = Path(sys.argv[0]).stem
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(f"usage: {script} NAME [--recipes FILE.py] [--flag value ...]\n")
        print(f"NAME is one of: {', '.join(table)}")
        print(f"`{script} NAME --help` lists the flags and the values they have under that name.")
        sys.exit()
    if name not in table:
        close = get_close_matches(name, table) or list(table)[:8]
        raise InputError(
            f"expected a name such as {', '.join(close)}, got {name or 'none'}; "
            f"`{script} --help` lists all {len(table)}"
        )
    return parse_flags(type(table[name]), table[name], arguments[1:], f"{script} {name}")


def parse_flags(
    kind: type[Config],
    default: Config | None = None,
    arguments: Sequence[str] | None = None,
    command: str | None = None,
) -> Config:
    """Return settings of one kind from flags; a setting's own complaint is one line.

    Args:
        kind: The dataclass of the settings.
        default: What flags change; None starts from the defaults of `kind`.
        arguments: The flags; None takes the command line's.
        command: What comes before the flags, for messages; None is the script.
    """
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if any(re.fullmatch(r"(--[\w-]+=)?", word) for word in words):  # as a path it is this folder
        raise InputError("expected values, got an empty one; is a variable of the shell unset?")
    screen = sys.stderr
    with redirect_stderr(StringIO()) as shown:
        try:
            config = tyro.cli(
                kind,
                prog=command or Path(sys.argv[0]).stem,
                args=arguments,
                description=(kind.__doc__ or "").split("\n")[0],
                config=(tyro.conf.AvoidSubcommands,),
                use_underscores=True,  # in help, as documents have them; hyphens are taken too
                default=tyro.MISSING_NONPROP if default is None else default,
            )
        except SystemExit as stop:
            error: BaseException | None = stop
            while error is not None and not isinstance(error, InputError):
                error = error.__context__
            if error is not None:
                raise error from None
            print(shown.getvalue(), end="", file=screen)
            raise
    check_paths(config)
    if hasattr(config, "pairs_weights") and words.count("--pairs") > 1:  # the last would count
        raise InputError("expected --pairs once, got it again; name all data sets after it")
    return config


def check_paths(settings: Any) -> None:
    """Raise InputError if a setting that is a local path has an address."""
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                check_local(one, name)
            elif is_dataclass(one):
                check_paths(one)


def _take(arguments: list[str], flag: str) -> str | None:
    """Remove a flag and its value from the arguments; return the value."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return arguments.pop(i).split("=", 1)[1]
        if argument == flag and i + 1 < len(arguments):
            return [arguments.pop(i), arguments.pop(i)][1]
    return None


def _end(name: str, message: str, code: int) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(code)
