"""``python -m sandtable``: the command, where its script is not on the path."""

from sandtable.cli.app import main

if __name__ == "__main__":
    main()
