"""Training at full size: ``rbnorm train``, one run in any number of processes.

It can be killed, and continues after the last epoch that had ended.

Nothing random is kept between steps: the order of an epoch, the augmentation of a batch and the
random numbers of a step are functions of the seed and of where they stand. So a checkpoint is the
weights, the optimiser and a number of steps.
"""
