"""`python -m emmental.export.report`: a public name of `emmental.reporting.command`."""

from emmental.optional import leave_without

if __name__ == "__main__":
    leave_without("ONNX files", "emmental.export.report")

from emmental.reporting.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
