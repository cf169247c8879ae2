"""What happens inside the containers of a SPIN pipeline: six components and the algorithm under them."""

__version__ = "0.1.0"
