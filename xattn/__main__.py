"""The way into the command line, also as ``python -m xattn``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is answered from the first moment on."""
    try:
        from xattn.commands import app  # takes seconds: it imports torch and transformers

        app()
    except KeyboardInterrupt:
        print("xattn: interrupted; nothing half-written is left", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
