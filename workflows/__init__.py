"""Templates of the template browser, and what writes them."""
