"""Experiments with normalisation layers: the extra ``rbnorm[lab]``, not used by the library.

Data flows one way: a frozen :class:`~rbnorm.lab.config.RunConfig` is trained into one
:class:`~rbnorm.lab.records.Record`; tables and figures are functions of records.
"""
