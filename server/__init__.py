"""The HTTP server, its queue and its worker process.

Nothing here imports torch; `server.worker.main`, in the child, brings in the engine that does.
"""
