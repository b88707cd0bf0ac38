"""Training on real images: data sets, teachers and classifiers. Knows nothing of forgetting."""
