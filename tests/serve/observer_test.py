"""An observer that only its subclasses make do anything."""

from atm.serve.observer import Observer


def test_it_hears_all_and_does_nothing():
  observer = Observer()
  observer.request_admitted(0.1, 5)
  observer.first_token(0.2)
  observer.tokens(4, 0.1)
  observer.request_ended('stop', 1.0, 5, 4)
  observer.device_call('decode', 0.1, 3, 4)
