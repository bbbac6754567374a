"""A pretrained network, fine-tuned on some domains and tested on another: the study ``domains``."""
