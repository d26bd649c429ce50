"""Many tasks, many models, one table: what a suite is, what its data are worth, and what was measured on it."""
