"""Measuring: metrics of images, and the bound on the likelihood."""
