"""A sweep: which runs it has, and the processes that train them."""
