"""Training at full size: ``rbnorm train``, one run in any number of processes, continued at a step.

Nothing random is kept between steps: the order of an epoch, the augmentation of a batch and the
random numbers of a step are functions of the seed and of where they stand. So a checkpoint is the
weights, their average, the optimiser and a number of steps.
"""
