"""What every script's command line does: recipe and flags to a config, one line for bad input.

Exit codes: 0 only when the work is whole, 2 for bad input, 1 for a run that failed, 128 + signal
after a signal (the state was saved).
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from types import FrameType
from typing import NoReturn, Self, TypeVar

import torch
import tyro
from accelerate import Accelerator, DistributedType
from diffusers.utils.logging import disable_progress_bar
from tqdm import tqdm

from get.errors import InputError

Config = TypeVar("Config")

RESOURCE_ERRORS = (
    *(errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EFBIG),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN),  # a mount that has gone
)


SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


class Failed(RuntimeError):
    """A run that cannot go on (a loss that is not finite, say); the message is complete."""


class Signals:
    """Remembers the first INT, TERM or USR1 so that work can stop at a good place.

    A second Ctrl-C stops at once: everything on disk is whole at any moment.
    """

    def __init__(self) -> None:
        """Nothing received yet."""
        self.received: int | None = None

    def __enter__(self) -> Self:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

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


def run(
    main: Callable[[Config], None], table: Mapping[str, Config], default: str | None = None
) -> None:
    """Parse `SCRIPT RECIPE --flag value`, call `main` with the config, turn errors into codes.

    Args:
        main: The script's work.
        table: Its recipes.
        default: The recipe that flags alone start from, for scripts where a recipe says little.
    """
    arguments = sys.argv[1:]
    flags_alone = arguments and arguments[0].startswith("--") and arguments[0] != "--help"
    given = [default, *arguments] if default and flags_alone else arguments
    _end_with_code(lambda: main(_parse(table, given)))


def run_alone(main: Callable[[Config], None], kind: type[Config]) -> None:
    """Do the same for a script without recipes, whose arguments are the fields of `kind`."""
    summary = (kind.__doc__ or "").split("\n")[0]
    _end_with_code(lambda: main(_in_one_line(lambda: tyro.cli(kind, description=summary))))


def _end_with_code(work: Callable[[], None]) -> None:
    disable_progress_bar()  # diffusers shows one for every file it loads
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]  # noqa: PTH119, PTH122
    try:
        work()
    except InputError as error:
        _end(name, str(error), 2)
    except Failed as error:
        _end(name, str(error), 1)
    except KeyboardInterrupt:
        _end(name, "stopped by SIGINT; run the same command to continue", 128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in RESOURCE_ERRORS:
            raise
        _end(name, f"expected to write {error.filename}, got: {error.strerror}", 2)


def check_processes(accelerator: Accelerator, at_most: int | None = None) -> None:
    """Stop if fewer processes work together than were launched, more than can, or in another way.

    Raises:
        InputError: Then; see docs of accelerate: `--cpu --num_processes 2` starts one process, and
            torchrun without ACCELERATE_USE_CPU=1 starts processes that do not know each other.
    """
    launched, together = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if launched != together:
        raise InputError(
            f"expected {launched} processes to work together, got {together}; on CPUs launch with "
            "ACCELERATE_USE_CPU=1 torchrun --standalone --nproc_per_node N -m pipeline.NAME"
        )
    if (way := accelerator.distributed_type) in SHARDED:
        raise InputError(
            f"expected whole weights on every process, as DDP keeps them, got {way.value}; "
            "launch without it: saving and averaging sharded weights is not built"
        )
    if at_most and together > at_most:
        raise InputError(f"expected at most {at_most} process, got {together}")


def progress_bar(total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True) -> tqdm:
    """Return a bar with rate and time left; in a log file it writes a line now and then only."""
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        disable=not shown,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
    )


def local_main() -> bool:
    """Say whether this is the process that talks on its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def local_device() -> torch.device:
    """Return this process's GPU, or the CPU, for scripts without collectives."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _parse(table: Mapping[str, Config], arguments: list[str]) -> Config:
    first = arguments[0] if arguments else ""
    if not first:
        raise InputError(f"expected a recipe ({', '.join(table)}), got none; --help explains")
    if first not in table and not first.startswith("-"):
        raise InputError(f"expected a recipe ({', '.join(table)}), got {first!r}")
    choices = {
        name: ((type(config).__doc__ or "").split("\n")[0], config)
        for name, config in table.items()
    }
    return _in_one_line(
        lambda: tyro.extras.overridable_config_cli(
            choices, args=arguments, config=(tyro.conf.AvoidSubcommands,)
        )
    )


def _in_one_line(parse: Callable[[], Config]) -> Config:
    """Let a config's own complaint through instead of the box that tyro draws around it."""
    screen = sys.stderr
    with redirect_stderr(StringIO()) as told:
        try:
            return parse()
        except SystemExit as stop:
            error: BaseException | None = stop
            while error is not None and not isinstance(error, InputError):
                error = error.__context__
            if error is not None:
                raise error from None
            print(told.getvalue(), end="", file=screen)
            raise


def _end(name: str, message: str, code: int) -> None:
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(code)
