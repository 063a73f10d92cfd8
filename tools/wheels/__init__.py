"""Build a wheel for each Python of this machine, repair it, and test it in an empty environment (``make wheels``)."""
