"""The command `musc` as a process of its own."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C that comes before it can be dealt with, or after, says no more than that it came."""
    try:
        from musc.cli import main as run

        return run()
    except KeyboardInterrupt:
        os.write(2, b"\nmusc: interrupted.\n")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's end has nothing to say either


if __name__ == "__main__":
    sys.exit(main())
