"""`python -m emmental.training.student_init`: a public name of `emmental.language_models.student_init`."""

from emmental.language_models.student_init import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
