"""``rbnorm explain``: the method as a page to touch, on real images in a real network."""
