"""`python -m hyena_ds` is the `hyena-ds` command."""

import sys

from hyena_ds.cli import main

if __name__ == "__main__":
    sys.exit(main())
