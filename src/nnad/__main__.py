"""`python -m nnad` is `nnad`."""

from nnad.cli import main

if __name__ == "__main__":
    main()
