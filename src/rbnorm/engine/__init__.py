"""The layer's math between the kernels: what runs, on which batch, and its derivative."""

import rbnorm.kernels  # noqa: F401 - the ops' portable forms are functions of this room
