"""One input at a time, under limits: it must end in a result or in a clear error, soon and within little memory."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECONDS = 1.0
MEGABYTES = 100
HANGS = 60.0
_CLEAR = (ValueError, TypeError, OSError)


@dataclass
class Figures:
    """What the inputs took so far."""

    inputs: int = 0
    errors: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0


def resident(name: str) -> float:
    """Return VmRSS or VmHWM of this process, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def judge(call: Callable[[], object], names: str | None, figures: Figures) -> None:
    """Make the call; AssertionError where it breaks what is promised.

    Its memory is limited by the system, so that what is asked for counts, whether it is touched or not: a call that
    asks for more gets MemoryError, or dies. What it really used is measured besides.

    Parameters
    ----------
    call : callable
        Reads a file, or calls a function with odd arguments.
    names : str
        What the message of an error must say; None for a call that may itself ask for more memory than there is.
    figures : Figures
        To which this call is added.
    """
    import resource  # which Windows has not

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = resident("VmRSS")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    faulthandler.dump_traceback_later(HANGS, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (MEGABYTES << 20), hard))
    start = time.process_time()
    failed: BaseException | None = None
    try:
        call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failed = error
    finally:
        taken = time.process_time() - start
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        faulthandler.cancel_dump_traceback_later()
    grown = resident("VmHWM") - before
    figures.inputs += 1
    figures.errors += failed is not None
    figures.seconds, figures.megabytes = max(figures.seconds, taken), max(figures.megabytes, grown)
    if failed is not None:
        said = f"{type(failed).__name__}: {failed}"
        if not isinstance(failed, _CLEAR if names is not None else (*_CLEAR, MemoryError)):
            raise AssertionError(f"no clear error, {said:.500}") from failed
        assert (names or "") in str(failed), f"the error must name {names}, got {said:.500}"
    assert taken < SECONDS, f"it took {taken:.2f} s"
    assert grown < MEGABYTES, f"it took {grown:.0f} MB"
