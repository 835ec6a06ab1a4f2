"""The page in a browser, of a real server with a real small model."""

import contextlib
import io
import math
import re
import shutil
import time

import pytest

from atm.inference import sampling
from atm.serve import http_server
from atm.serve.engine import Engine, EngineSizes, QueueFullError
from atm.serve.observer import Observer
from atm.serve.service import Service

pytestmark = pytest.mark.processes
PROMPT = 'All human beings'


class SlowObserver(Observer):
  """Makes each call of the device take as long as a large model's."""

  seconds = 0.0

  def device_call(self, *args, **named):
    time.sleep(self.seconds)


class Server:
  """A server that can go and come back at its address."""

  def __init__(self, model):
    self.observer = SlowObserver()
    sizes = EngineSizes(
      slots=4, beam_groups=1, beams=2, most_steps=2, admit_tokens=64
    )
    self.engine = Engine(model, sizes, self.observer, say=lambda text: None)
    self.service = Service(model, self.engine, 'tiny', phase='ready')
    self.port = 0
    self.engine.start()
    self.start()

  def start(self):
    from atm.serve.app import create_app

    sock = http_server.listen('127.0.0.1', self.port)
    self.address = http_server.format_url(sock)
    self.port = sock.getsockname()[1]
    self._http = http_server.HttpServer(create_app(self.service), sock)
    self._http.start()

  def stop(self):
    self._http.stop()

  def close(self):
    self.stop()
    self.engine.close()


@pytest.fixture(scope='module')
def server(model):
  made = Server(model)
  yield made
  made.close()


@pytest.fixture(scope='module')
def browser():
  sync_api = pytest.importorskip('playwright.sync_api')
  path = shutil.which('chromium') or shutil.which('google-chrome')
  if path is None:
    pytest.skip('needs a browser: chromium or google-chrome')
  with sync_api.sync_playwright() as playwright:
    started = playwright.chromium.launch(executable_path=path)
    yield started
    started.close()


@pytest.fixture
def tab(browser, server):
  """The page, opened; in the end it has asked nobody else, nor complained."""
  with open_tab(browser, server) as page:
    yield page


@contextlib.contextmanager
def open_tab(browser, server, answer=None, **options):
  """Opens the page; `answer` answers what models there are."""
  context = browser.new_context(
    viewport={'width': 1600, 'height': 900}, locale='en-US', **options
  )
  page = context.new_page()
  page.set_default_timeout(20_000)
  page.complaints, page.expected = [], ()
  page.on('pageerror', lambda e: page.complaints.append(str(e)))
  page.on(
    'console',
    lambda message: page.complaints.append(f'{message.type}: {message.text}'),
  )
  if answer is not None:
    page.route('**/v1/models', answer)
  asked = []
  page.on('request', lambda request: asked.append(request.url))
  page.goto(server.address)
  page.locator('#server[data-state]').wait_for()
  yield page
  others = [x for x in asked if not x.startswith((server.address, 'data:'))]
  assert not others
  # The browser itself tells of answers that are errors.
  expected = re.compile('|'.join(page.expected) or '(?!)')
  assert [x for x in page.complaints if not expected.search(x)] == []
  context.close()


def run(page, count: int = 1) -> list[str]:
  """Presses Run; returns the texts of the answers once all have ended."""
  page.click('#run')
  return wait_for_answers(page, count)


def wait_for_answers(page, count: int = 1) -> list[str]:
  page.locator('#run').wait_for()
  answers = page.locator('article:not(.running) .text')
  problem = page.locator('#error:not([hidden])').all_text_contents()
  assert answers.count() == count and not problem, problem
  return answers.evaluate_all('all => all.map((x) => x.textContent)')


def complete(server, **settings) -> list:
  """Returns what the engine gives callers in Python."""
  config = sampling.Config(**settings)
  return server.engine.complete([PROMPT], 'denoise', config=config)[0]


def test_it_streams_an_answer_with_the_probabilities_of_its_tokens(tab, server):
  tab.fill('#prompt', PROMPT)
  tab.check('[name=mode][value=denoise]', force=True)
  tab.fill('#set-max_tokens', '8')
  tab.press('#prompt', 'Control+Enter')
  (text,) = wait_for_answers(tab)
  (alone,) = complete(server, max_tokens=8)
  assert text == alone.text
  assert tab.locator('#facts').text_content().startswith('8 tokens')
  assert tab.locator('#spoken').text_content().endswith(text)
  # Each token tells its probability, to the pointer and to the keys.
  tab.locator('.text').press('ArrowRight')
  token = tab.locator('.current')
  i = int(token.get_attribute('data-at'))
  percents = [float(x) for x in re.findall(r'([\d.]+)%', tip(tab))]
  p = 100 * math.exp(alone.log_probabilities[i])
  assert percents[0] == pytest.approx(p, abs=0.06)
  assert len(percents) == 6  # and of five likeliest ones
  tab.keyboard.press('Escape')
  assert tab.locator('#tip').is_hidden()
  tab.locator('.text [data-at]').last.hover()
  assert tip(tab)
  tab.click('article summary')
  tab.locator('tbody tr').nth(7).wait_for()
  assert tab.locator('tbody tr').count() == 8


def tip(page) -> str:
  page.locator('#tip').wait_for()
  return page.locator('#tip').text_content()


def test_samples_stand_side_by_side(tab, server):
  tab.fill('#prompt', PROMPT)
  tab.check('[name=mode][value=denoise]', force=True)
  tab.check('[name=choice][value=sample]', force=True)
  for name, value in (('n', 3), ('seed', 7), ('max_tokens', 6)):
    tab.fill(f'#set-{name}', str(value))
  settings = dict(results=3, seed=7, max_tokens=6, temperature=0.8)
  expected = [x.text for x in complete(server, **settings)]
  assert run(tab, 3) == expected
  tops = {
    box['y'] for x in tab.locator('article').all() if (box := x.bounding_box())
  }
  assert len(tops) == 1


def test_beams_have_scores(tab, server):
  tab.fill('#prompt', PROMPT)
  tab.check('[name=mode][value=denoise]', force=True)
  tab.check('[name=choice][value=beams]', force=True)
  tab.fill('#set-beams', '2')
  tab.fill('#set-max_tokens', '6')
  expected = complete(server, beams=2, results=2, max_tokens=6)
  assert run(tab, 2) == [x.text for x in expected]
  for card, beam in zip(tab.locator('article').all(), expected):
    assert f'score {beam.score:.3f}' in card.text_content()


def test_escape_stops_and_frees_the_row(tab, server, monkeypatch):
  monkeypatch.setattr(server.observer, 'seconds', 0.1)
  tab.fill('#set-max_tokens', '60')
  tab.fill('#set-min_tokens', '60')
  tab.focus('#run')
  tab.keyboard.press('Enter')
  tab.locator('.running [data-at]').nth(1).wait_for()
  assert server.engine.stats().used_slots == 1
  tab.keyboard.press('Escape')
  tab.locator('#run').wait_for()
  card = tab.locator('article').text_content()
  assert 'stopped by you' in card and '60 tokens' not in card
  assert tab.evaluate('() => document.activeElement.id') == 'run'
  for _ in range(50):
    if not server.engine.stats().used_slots:
      break
    time.sleep(0.1)
  assert not server.engine.stats().used_slots
  # What follows is answered as ever.
  tab.fill('#set-min_tokens', '')
  tab.fill('#set-max_tokens', '2')
  run(tab)


def test_errors_name_the_setting_and_say_what_to_do(tab, server, monkeypatch):
  tab.expected = ('status of 4',)
  tab.check('[name=choice][value=sample]', force=True)
  tab.fill('#set-top_p', '2')
  tab.click('#run')
  alert = tab.locator('#error')
  alert.wait_for()
  assert 'top_p = 2' in alert.text_content()
  assert tab.get_attribute('#set-top_p', 'aria-invalid') == 'true'
  assert tab.evaluate('() => document.activeElement.id') == 'set-top_p'
  tab.fill('#set-top_p', '')
  tab.fill('#set-n', '1000000000')
  tab.click('#run')
  tab.locator('#set-n[aria-invalid]').wait_for()
  tab.fill('#set-n', '1')
  tab.fill('#prompt', 'word ' * 500)
  tab.click('#run')
  tab.locator('#prompt[aria-invalid]').wait_for()
  assert 'tokens' in alert.text_content()
  tab.fill('#prompt', '<img src=x onerror=alert(1)>')

  def refuse(requests, deliver):
    raise QueueFullError(9, 9)

  with monkeypatch.context() as patched:
    patched.setattr(server.engine, 'submit', refuse)
    tab.click('#run')
    tab.get_by_text('Wait 1 second').wait_for()
  alert.get_by_role('button').click()  # try again
  wait_for_answers(tab)
  assert alert.is_hidden()


def test_a_key_is_asked_for_and_forgotten(browser, server, monkeypatch):
  monkeypatch.setattr(server.service, 'api_key', 'secret')
  with open_tab(browser, server) as tab:
    tab.expected = ('status of 401',)
    for key in ('wrong', 'secret'):
      tab.fill('#key', key)
      with tab.expect_response('**/v1/models'):
        tab.press('#key', 'Enter')
    tab.locator('#server[data-state=ready]').wait_for()
    assert tab.locator('#key-form').is_hidden()
    tab.fill('#set-max_tokens', '2')
    run(tab)
    stored = tab.evaluate('() => JSON.stringify({...localStorage})')
    assert 'secret' not in stored
    tab.click('#code summary')
    assert 'secret' not in tab.locator('#code-text').text_content()


def test_it_connects_again_when_the_server_is_back(tab, server):
  tab.expected = ('ERR_', 'status of 503')
  tab.fill('#set-max_tokens', '2')
  server.stop()
  try:
    tab.click('#run')
    tab.get_by_text('The server is gone').wait_for()
    tab.locator('#server[data-state=gone]').wait_for()
  finally:
    server.start()
  tab.locator('#server[data-state=ready]').wait_for()
  assert tab.locator('#error').is_hidden()
  run(tab)
  # One that drains says so.
  server.service.phase = 'draining'
  try:
    tab.click('#run')
    tab.get_by_text('the server is draining').wait_for()
  finally:
    server.service.phase = 'ready'
  tab.locator('#server[data-state=ready]').wait_for()


def test_right_to_left_dark_and_narrow(browser, server):
  with open_tab(browser, server, color_scheme='dark') as tab:
    direction = 'x => getComputedStyle(x).direction'
    tab.get_by_role('button', name='العربية').first.click()
    assert tab.locator('#prompt').evaluate(direction) == 'rtl'
    tab.fill('#set-prefix', 'الناس')
    tab.fill('#set-max_tokens', '4')
    (text,) = run(tab)
    assert text.startswith('الناس')
    assert tab.locator('.text').evaluate(direction) == 'rtl'
    light = 'x => getComputedStyle(x).backgroundColor == "rgb(252, 251, 249)"'
    assert not tab.locator('body').evaluate(light)
    tab.check('[name=theme][value=light]', force=True)
    assert tab.locator('body').evaluate(light)
    tab.reload()
    assert tab.locator('body').evaluate(light)
    tab.set_viewport_size({'width': 380, 'height': 800})
    wide = 'x => x.scrollWidth > x.clientWidth'
    for name in ('Translate', 'Prompt'):
      tab.get_by_role('tab', name=name).click()
      assert not tab.locator('html').evaluate(wide)


def test_the_request_as_python_asks_the_same(tab, server):
  pytest.importorskip('openai')
  tab.fill('#prompt', f'{PROMPT}\' are \\ "born"\n$HOME')
  tab.fill('#set-repetition_penalty', '1.2')
  tab.fill('#set-stop', '.\n;')
  tab.fill('#set-max_tokens', '6')
  (text,) = run(tab)
  tab.click('#code summary')
  tab.check('[name=code][value=python]', force=True)
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(tab.locator('#code-text').text_content(), {})
  assert printed.getvalue() == text + '\n'


def test_it_translates_by_examples(tab):
  tab.get_by_role('tab', name='Prompt').press('ArrowRight')
  tab.select_option('#target', 'ar')
  assert tab.locator('.shot textarea').last.input_value().startswith('لكل')
  tab.get_by_role('button', name='Add an example').click()
  tab.keyboard.type('Peace.')
  tab.get_by_role('button', name='Remove').last.click()
  assert tab.locator('.shot').count() == 1
  for area, text in zip(tab.locator('.shot textarea').all(), ('All.', 'كل.')):
    area.fill(text)
  tab.fill('#sentence', 'All.')
  tab.fill('#set-max_tokens', '4')
  run(tab)
  assert tab.locator('.text').get_attribute('lang') == 'ar'


def test_a_model_of_languages_is_asked_by_their_codes(browser, server):
  """The card of NLLB's kind; what it would answer is not asked for."""
  languages = ['arb_Arab', 'deu_Latn', 'eng_Latn', 'zho_Hant', 'xx_odd']
  defaults = {'beams': 5, 'max_tokens': 200}

  def answer(route):
    card = dict(id='n', modes=[], languages=languages, defaults=defaults)
    route.fulfill(json={'data': [card]})

  with open_tab(browser, server, answer=answer) as tab:
    assert tab.locator('#translate').is_visible()
    names = tab.locator('#target option').all_text_contents()
    assert names == [
      'Arabic · arb_Arab', 'Chinese (Traditional) · zho_Hant',
      'English · eng_Latn', 'German · deu_Latn', 'xx_odd',
    ]  # fmt: skip
    read = lambda: [
      tab.locator(x).input_value() for x in ('#source', '#target')
    ]
    assert read() == ['eng_Latn', 'deu_Latn']
    tab.get_by_role('button', name='Swap').click()
    assert read() == ['deu_Latn', 'eng_Latn']
    chips = tab.locator('#sentences button:visible')
    assert chips.count() == 3
    chips.last.click()
    assert read() == ['arb_Arab', 'eng_Latn']
    tab.click('#code summary')
    code = tab.locator('#code-text').text_content()
    for part in ('"source": "arb_Arab"', '"target": "eng_Latn"', '"n": 5'):
      assert part in code
    assert tab.get_attribute('#set-max_tokens', 'placeholder') == '200'
    tab.get_by_role('tab', name='Prompt').click()
    assert tab.locator('[name=mode]:checked').input_value() == ''
    assert tab.locator('#source').is_visible()
    assert '"target": "eng_Latn"' in tab.locator('#code-text').text_content()
