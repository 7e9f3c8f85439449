"""How every weight of the mini suite is made, from published packages of openly licensed emoji."""
