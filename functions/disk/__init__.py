"""What is on disk: files that appear whole, manifests, pictures, plots."""
