"""The cost of RBN next to BatchNorm and the literal definition: setup -> time -> rows."""
