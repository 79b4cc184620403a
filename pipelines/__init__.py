"""How FLUX.1-dev and FLUX.1-Depth-dev are computed.

`request`, `models`, `sizes`, `picture` and `schedule` import no torch: they are the vocabulary that the server speaks.
Everything else runs in the worker process only.
"""
