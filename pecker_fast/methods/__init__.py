"""The methods that an erasure is compared with, and the training of teachers and judges."""
