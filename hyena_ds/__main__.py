"""`python -m hyena_ds` is the `hyena-ds` command."""

from hyena_ds.cli import run_process

if __name__ == "__main__":
    run_process()
