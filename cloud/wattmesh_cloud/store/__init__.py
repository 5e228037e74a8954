"""Seven tables behind one interface."""
