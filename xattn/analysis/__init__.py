"""What people do with attention maps, each use with a test of its promise."""
