"""Other ways to forget a class, under the same optimizer, masks and run directories."""
