"""What is done to the RBN layers of a whole model."""
