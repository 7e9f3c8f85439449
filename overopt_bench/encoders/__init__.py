"""Image and text encoders that rewards, suites and critics share; each is loaded once per suite (``Resources``)."""
