"""`python -m ibscan` and the `ibscan` command."""

import signal


def main() -> None:
    """Run the command line."""
    # Until the command line has its own handler, an interrupt ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ibscan.cli.entry import main as run

    run()


if __name__ == "__main__":
    main()
