"""``python -m bridge_mcore`` is `bridge-mcore`."""

from bridge_mcore.cli.main import main

if __name__ == "__main__":
    main()
