"""Judging generated images: classifier, Fréchet distance, forgetting, pictures, the report."""
