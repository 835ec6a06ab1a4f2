(CNN) -- A lighthouse was painted red

Sailors like it.

@highlight

Lighthouse is red now

@highlight

Sailors like it
