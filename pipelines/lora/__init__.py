"""Low-rank adapters (LoRA) for FLUX transformers.

`files` imports no torch: what a folder holds and what a file's header tells. `shelf` adds files to a loaded transformer
for one request at a time; `depth` makes a depth model of a dev model and its control LoRA. Import the modules.
"""
