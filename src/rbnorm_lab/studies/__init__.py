"""Claims about RBN as studies: what is run, how it is judged, and the page that says so."""
