"""All a GPU can tell about the kernels, in minutes: ``python -m tools.gpu_report --out DIR``.

It runs where nothing is installed but torch and Triton: from the root of the project, with
``PYTHONPATH=src``. What is timed is what ``rbnorm bench --device cuda`` times, and what only a GPU
has stands beside it. A row is written the moment it is known, to ``rows.jsonl``; so a crash, or the
end of the time, loses one case.
"""
