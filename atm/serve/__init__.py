"""Serves a model: requests that come at any time decode together.

May import `atm.inference` and all that it may import. A request's encoder input
is read once, when it is admitted; its outputs take rows that decode together,
and are free again at any step.
"""
