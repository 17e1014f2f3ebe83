"""The name of `emmental.reporting.prune_command` for `python -m`."""

from __future__ import annotations

from emmental.reporting.prune_command import main

if __name__ == "__main__":
    main()
