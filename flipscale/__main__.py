"""`python -m flipscale`, for launchers that start a module."""

from flipscale.cli.app import main

if __name__ == "__main__":
    main()
