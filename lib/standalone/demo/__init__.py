"""The demo: a tiny pipeline and a handful of pictures, made on the spot."""
