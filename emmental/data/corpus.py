"""`python -m emmental.data.corpus`: a public name of `emmental.language_models.corpus`."""

from emmental.language_models.corpus import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
