"""`python -m loraweave` is the same as `loraweave`."""

from .cli import main

if __name__ == "__main__":
    main()
