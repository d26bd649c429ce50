"""`hyena-ds doctor`: looks at every host, its shards and its links before a long run does."""
