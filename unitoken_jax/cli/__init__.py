"""The command line: `main` runs it, each group of verbs has a file with its options and what they do."""
