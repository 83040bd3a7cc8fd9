"""BuildGrid's command line `bgd` as a foreign prober: it was written for another server."""
