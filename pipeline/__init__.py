"""shipnet: from a folder of images to a classifier that people run."""

__version__ = "0.1.0"
