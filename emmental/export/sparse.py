"""`python -m emmental.export.sparse`: a public name of `emmental.inference.predict`."""

from emmental.inference.predict import load_sparse, main

__all__ = ["load_sparse", "main"]

if __name__ == "__main__":
    main()
