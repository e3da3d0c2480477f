"""What the package costs, measured: ``make bench``. Figures of a machine are no tests, so nothing here fails."""
