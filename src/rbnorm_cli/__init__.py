"""The command line of rbnorm, apart from the library: an answer to a slip needs no torch."""
