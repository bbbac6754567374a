"""``rbnorm explain``: the method as an interactive page, on real images in a real network."""
