"""`python -m ibscan` and the `ibscan` command."""

from ibscan.cli.entry import main

if __name__ == "__main__":
    main()
