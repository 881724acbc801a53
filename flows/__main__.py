"""``python -m flows`` is ``b3``."""

from flows.cli import main

if __name__ == "__main__":
    main()
