"""Problems with verifiable answers and expert traces: read, generated, rendered to tokens, and put in an order.

No module here imports torch or transformers when it is imported, so that data errors are found before anything heavy
is loaded.
"""
