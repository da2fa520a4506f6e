"""`python -m svc` is the same as `svc`."""

from svc.cli import main

if __name__ == "__main__":
    main()
