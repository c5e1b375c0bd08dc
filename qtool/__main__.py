"""``python -m qtool``: the command line of the installation that this Python sees."""

from qtool.cli import main

if __name__ == "__main__":
    main()
