"""The layer's math between the kernels: what runs, on which batch, and its derivative."""
