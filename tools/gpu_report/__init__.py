"""All a GPU can tell about the kernels, in minutes: ``python -m tools.gpu_report --out DIR``.

It runs where nothing is installed but torch and Triton: from the root of the project, with
``PYTHONPATH=src``. Each step is a module of this package with ``NAME``, ``SECONDS`` (its time
limit), ``WORKERS`` (how many processes share it), ``cases(options)``, and ``run(case, options)``,
which yields rows. A row is written the moment it is known, to ``rows.jsonl``; so a crash, or the
end of the time, loses one case.
"""
