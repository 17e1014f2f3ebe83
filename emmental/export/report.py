"""`python -m emmental.export.report`: a public name of `emmental.reporting.report`."""

from emmental.reporting.report import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
