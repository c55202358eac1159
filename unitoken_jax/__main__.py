"""`python -m unitoken_jax` is `unitoken`."""

import sys


def start() -> None:
    """The command `unitoken`: ends this process with `main`'s exit code."""
    try:
        from unitoken_jax.cli.main import main
    except KeyboardInterrupt:
        print("unitoken: stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(main())


if __name__ == "__main__":
    start()
