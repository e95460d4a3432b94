"""Which published directions the data of the other studies show, and which not."""
