"""Configuration files of the command line; a package, so that Hydra finds them in an installed copy too."""
