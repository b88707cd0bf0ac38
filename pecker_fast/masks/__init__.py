"""Saliency masks: the value, how it is selected, scores from gradients, files, and proof."""
