"""The networks: they know no noise path, mesh, configuration or file.

Attribute names are those of the weight files.
"""
