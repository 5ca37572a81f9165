"""`python -m ibscan` and the `ibscan` command."""

import os
import sys

# Python puts the working folder first on the import path, and a run folder may hold a torch.py or json.py of its own.
# It stays where this very package lies in it, as in a checkout.
_OURS = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - pathlib would be imported first
if __name__ == "__main__" and not sys.flags.safe_path and os.path.realpath(sys.path[0]) != _OURS:
    del sys.path[0]

import signal  # noqa: E402 - only now


def main() -> None:
    """Run the command line."""
    # Until the command line has its own handler, an interrupt ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ibscan.cli.entry import main as run

    run()


if __name__ == "__main__":
    main()
