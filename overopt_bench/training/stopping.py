"""Ctrl-C and other signals: a run stops within ten seconds, whatever it is doing, and the last line says how to go on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from overopt_bench.errors import Stopped

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 5.0  # seconds in which a run may reach its next micro-batch
LAST = 2.0  # seconds in which it may leave Python code that takes longer than that
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # variables that torchrun and accelerate launch set
# a launcher prints its own traceback once all its processes have ended, so what must be read last waits for its end
EPILOGUE = """
import psutil, sys
try:
    psutil.Process(int(sys.argv[1])).wait(timeout=60)
except psutil.Error:
    pass
print(sys.argv[2], flush=True)
"""


class StopSignals:
    """A listener to the signals that ask a run to stop; only the first one counts.

    A stop is answered at the next call of ``check``, between two micro-batches. Code that takes longer than
    ``PATIENCE`` seconds is left by an exception where Python runs it, and where it does not, ``overdue`` is called.

    Args:
        quiet: whether to print nothing when a signal comes.

    Attributes:
        number: the number of the signal that came, or None.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.number: int | None = None
        self._quiet = quiet
        self._answered = False
        self._impatient = False

    def check(self) -> None:
        """Go on, unless a stop was asked for.

        Raises:
            Stopped: where one was, once.
        """
        if self.number is not None and not self._answered:
            self._answered = True
            raise Stopped(self.number)

    def answered(self) -> None:
        """Let no exception interrupt what the caller does from here on."""
        self._answered = True

    @contextmanager
    def listening(self, overdue: Callable[[int], None]) -> Iterator[None]:
        """Listen inside the block; outside of the main thread whoever runs it handles signals.

        Args:
            overdue: called with the signal's number, from another thread, where the block does not end in time.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        # Python handles a signal between two of its own instructions; the byte comes at once, whatever C code runs
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        # under nohup a hangup stays ignored
        heard = [s for s in SIGNALS if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]
        handlers = {s: signal.signal(s, self._hear) for s in heard}
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(receiver, ended, overdue), daemon=True, name="signals")
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sender.close()
            watcher.join()
            receiver.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._impatient:
            self.check()

    def _watch(self, receiver: socket.socket, ended: threading.Event, overdue: Callable[[int], None]) -> None:
        while (data := receiver.recv(1)) and data[0] not in SIGNALS:
            continue
        if not data:
            return
        self.number = self.number or data[0]
        if not self._quiet:
            print("\nstopping within ten seconds ...", file=sys.stderr, flush=True)
        if ended.wait(PATIENCE):
            return
        self._impatient = True
        signal.pthread_kill(threading.main_thread().ident or 0, self.number)
        if not ended.wait(LAST):
            overdue(self.number)


def launched() -> bool:
    """Say whether a launcher started this process, and will speak after it."""
    return any(name in os.environ for name in LAUNCHERS)


def print_last(text: str) -> None:
    """Print a line now and, where a launcher speaks after this process, once more when the launcher has ended."""
    print(text, flush=True)
    if launched():
        subprocess.Popen(
            [sys.executable, "-c", EPILOGUE, str(os.getppid()), text], stdin=subprocess.DEVNULL, start_new_session=True
        )
