"""Processes killed without warning: what was acknowledged must still be there, once.

`witness` is what processes write down the moment the store has acknowledged something; `holder` is a worker of its own
making that writes down everything; `app` is an ordinary app for the worker SDK; `test_kills` starts, kills and judges.
"""
