"""The networks: they know no schedule, mesh, configuration or file.

Attribute names are those of the weight files.
"""
