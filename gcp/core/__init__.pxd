# The directory is a package for Cython alone: `from gcp.core.ring cimport ring_t`. It holds no Python module.
