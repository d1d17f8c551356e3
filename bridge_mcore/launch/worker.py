"""One rank that `launch.local` started: the same command line, which finds RANK in its environment and joins."""

from bridge_mcore.cli.main import main

if __name__ == "__main__":
    main()
