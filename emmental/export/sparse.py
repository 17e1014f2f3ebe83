"""`python -m emmental.export.sparse`: a public name of `emmental.inference.sparse`."""

from emmental.inference.sparse import load_sparse, main

__all__ = ["load_sparse", "main"]

if __name__ == "__main__":
    main()
