"""The networks. They know no schedule, mesh, configuration or file; attribute names are those of the weight files."""
