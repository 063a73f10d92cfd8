"""Programs for developers of gcp. They are run from the root of a clone, and no wheel contains them."""
