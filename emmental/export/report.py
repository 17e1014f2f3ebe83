"""`python -m emmental.export.report`: a public name of `emmental.reporting.command`."""

from emmental.reporting.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
