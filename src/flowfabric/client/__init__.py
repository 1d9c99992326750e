"""The client: the stores of the contract over HTTP, and the few verbs most programs need on top of any stores.

`http.HttpStores` is the contract over REST; `facade` (asynchronous) and `blocking` are what people use. Nothing here
runs timers or work: a client submits, watches and fetches.
"""
