"""FASTA to WebDataset shards: plain CPU processes, no torch. `cli.py` has the commands, `build.py` the flow."""
