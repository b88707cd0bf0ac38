"""Patches: small files that turn a network into its erased form and back, bit for bit."""
