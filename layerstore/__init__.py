"""layerstore: image builder, content-addressed layer store and container launcher for Linux."""

__version__ = "0.1.0"
