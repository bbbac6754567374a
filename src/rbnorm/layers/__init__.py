"""The layers and their options."""
