"""Labelled tasks made of sequences and annotations, with splits that share no gene and no base."""
