"""Sockets that are refused, and an application in a thread of its own."""

import http.client
import json
import socket
import time

import pytest

from atm.serve import http_server


@pytest.mark.parametrize('host, is_it', [
  ('127.0.0.1', True), ('127.9.8.7', True), ('::1', True), ('0.0.0.0', False),
  ('::', False), ('10.0.0.1', False), ('fe80::1%eth0', False),
])  # fmt: skip
def test_which_addresses_are_of_this_machine_alone(host, is_it):
  assert http_server.is_loopback(host) == is_it


def test_others_reach_a_server_with_a_key_or_a_statement_alone():
  for host in ('127.0.0.1', 'localhost'):
    http_server.check_exposure(host, None, False)
  for host in ('0.0.0.0', '10.0.0.1'):
    with pytest.raises(ValueError, match='others could use the model'):
      http_server.check_exposure(host, None, False)
  http_server.check_exposure('0.0.0.0', 'key', False)
  http_server.check_exposure('0.0.0.0', None, True)


@pytest.mark.parametrize('host, message', [
  ('no such host.invalid', "HOST = 'no such host.invalid': no address"),
  ('', 'no address'), ('a' * 300, 'no address'), ('\u00e4\0', 'no address'),
  ('192.0.2.1', "HOST = '192.0.2.1': Cannot assign requested address"),
])  # fmt: skip
def test_hosts_that_are_none_of_this_machine(host, message):
  with pytest.raises(ValueError, match='expected') as e:
    http_server.listen(host, 0)
  assert message in str(e.value)
  assert len(str(e.value)) < 500 and '\n' not in str(e.value)


def test_a_port_in_use():
  with http_server.listen('127.0.0.1', 0) as sock:
    port = sock.getsockname()[1]
    with pytest.raises(ValueError, match=f'PORT = {port}: another process'):
      http_server.listen('127.0.0.1', port)
  http_server.listen('127.0.0.1', port).close()


def test_the_address_to_open():
  with http_server.listen('127.0.0.1', 0) as sock:
    port = sock.getsockname()[1]
    assert http_server.format_url(sock) == f'http://127.0.0.1:{port}/'
  with http_server.listen('0.0.0.0', 0) as sock:
    assert http_server.format_url(sock).startswith('http://localhost:')
  if socket.has_ipv6:
    with http_server.listen('::1', 0) as sock:
      assert http_server.format_url(sock).startswith('http://[::1]:')


def test_an_application_answers_until_it_is_stopped():
  async def app(scope, receive, send):
    assert scope['type'] == 'http'
    await send({'type': 'http.response.start', 'status': 204})
    await send({'type': 'http.response.body'})

  sock = http_server.listen('127.0.0.1', 0)
  server = http_server.HttpServer(app, sock)
  port = sock.getsockname()[1]
  server.start()
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
  connection.request('GET', '/')
  response = connection.getresponse()
  assert response.status == 204 and response.getheader('server') is None
  start = time.monotonic()
  server.stop()  # a connection that is kept open holds nothing up
  assert time.monotonic() - start < http_server.CLOSE_SECONDS
  assert not server.is_alive() and server.failure is None
  with pytest.raises(OSError):
    socket.create_connection(('127.0.0.1', port), timeout=1)


def test_what_is_no_http_is_refused_and_logged_as_json(capsys):
  async def app(scope, receive, send):
    raise AssertionError('never asked')

  sock = http_server.listen('127.0.0.1', 0)
  server = http_server.HttpServer(app, sock)
  server.start()
  with socket.create_connection(sock.getsockname(), timeout=10) as client:
    client.sendall(b'\x16\x03\x01 no HTTP\r\n\r\n')
    assert client.makefile('rb').readline().startswith(b'HTTP/1.1 400')
  server.stop()
  event = json.loads(capsys.readouterr().err)
  assert event['message'] == 'Invalid HTTP request received.'
