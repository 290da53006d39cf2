"""Scripts that measure speed or test published claims, one each.

Full runs are committed under ``results/`` and fill the README's tables.
"""
