"""``python -m bridge_mcore`` is `bridge-mcore`, and both begin here."""

from __future__ import annotations


def main() -> None:
    """As `bridge_mcore.cli.main.main`, also where Ctrl-C comes while that is still being imported."""
    try:
        from bridge_mcore.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
