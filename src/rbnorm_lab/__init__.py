"""Experiments with normalisation layers: the extra ``rbnorm[lab]``, not used by the library.

Data flows one way: a frozen :class:`~rbnorm_lab.config.RunConfig` is trained into one
:class:`~rbnorm_lab.records.Record`; tables and figures are functions of records.
"""
