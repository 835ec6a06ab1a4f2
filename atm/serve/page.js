'use strict';

// --- What the page knows

// Articles 1 and 3 of the Universal Declaration of Human Rights.
const TEXTS = {
  en: ['All human beings are born free and equal in dignity and rights.',
    'Everyone has the right to life, liberty and the security of person.'],
  de: ['Alle Menschen sind frei und gleich an Würde und Rechten geboren.',
    'Jeder hat das Recht auf Leben, Freiheit und Sicherheit der Person.'],
  es: ['Todos los seres humanos nacen libres e iguales en dignidad y derechos.',
    'Todo individuo tiene derecho a la vida, a la libertad y a la seguridad ' +
    'de su persona.'],
  fr: ['Tous les êtres humains naissent libres et égaux en dignité et en ' +
    'droits.',
    'Tout individu a droit à la vie, à la liberté et à la sûreté de sa ' +
    'personne.'],
  it: ['Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti.',
    'Ogni individuo ha diritto alla vita, alla libertà ed alla sicurezza ' +
    'della propria persona.'],
  pt: ['Todos os seres humanos nascem livres e iguais em dignidade e direitos.',
    'Todo ser humano tem direito à vida, à liberdade e à segurança pessoal.'],
  ar: ['يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.',
    'لكل فرد الحق في الحياة والحرية وسلامة شخصه.'],
  hi: ['सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और ' +
    'समानता प्राप्त है ।',
    'प्रत्येक व्यक्ति को जीवन, स्वाधीनता और वैयक्तिक सुरक्षा का अधिकार है ।'],
  mr: ['सर्व मानवी व्यक्ति जन्मतःच स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व ' +
    'समान अधिकार आहेत.',
    'प्रत्येकास जगण्याचा, स्वातंत्र्य उपभोगण्याचा व सुरक्षित असण्याचा अधिकार आहे.'],
  ja: ['すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。',
    'すべての人は、生命、自由及び身体の安全に対する権利を有する。'],
  ta: ['மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.',
    'வாழ்வதற்கும், சுதந்திரத்திற்கும் பாதுகாப்பிற்கும் சகலரும் உரிமையுடையோராவர்.'],
  te: ['ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును ' +
    'సమానులును నగుదురు.',
    'జీవితరక్షణకు, స్వేచ్ఛకు, దేహరక్షకు, ప్రతి యొకరికిని హక్కు గలదు.'],
};
const MODES = {
  clm: ['Continue', 'Writes what comes behind the text.'],
  denoise: ['Complete', 'Writes the text whole, with the words that it lacks.'],
  '': ['Model’s own', 'As the model was trained.'],
};
const CHOICES = {
  greedy: ['Greedy', 'The likeliest token each time.'],
  sample: ['Sample', 'Each token is drawn by its probability.'],
  beams: ['Beams', 'Several outputs are followed; the likeliest wins.'],
};
// What is left empty is not sent: then the model's own counts, or `usual`.
const SETTINGS = [
  {name: 'n', label: 'Samples', when: 'sample', value: 1, min: 1,
    hint: 'Side by side, each drawn anew.'},
  {name: 'temperature', label: 'Temperature', when: 'sample', value: 0.8,
    min: 0, step: 0.1,
    hint: 'Below 1 favours likely tokens, above 1 unlikely ones.'},
  {name: 'top_p', label: 'Top p', when: 'sample', usual: 1, min: 0, max: 1,
    step: 0.05,
    hint: 'Only the likeliest that together have this probability.'},
  {name: 'top_k', label: 'Top k', when: 'sample', usual: 0, min: 0,
    hint: 'Only this many likeliest; 0: all.'},
  {name: 'min_p', label: 'Min p', when: 'sample', usual: 0, min: 0, max: 1,
    step: 0.05,
    hint: 'Only those with this share of the likeliest’s probability.'},
  {name: 'seed', label: 'Seed', when: 'sample', usual: 'any', min: 0,
    hint: 'The same seed draws the same samples.'},
  {name: 'beams', label: 'Beams', when: 'beams', value: 4, min: 1,
    hint: 'Outputs followed at a time, and shown.'},
  {name: 'length_penalty', label: 'Length penalty', when: 'beams', usual: 1,
    step: 0.1, hint: 'Scores are divided by the length to this power: above ' +
    '0 favours long outputs.'},
  {name: 'max_tokens', label: 'Most tokens', usual: 64, min: 1,
    hint: 'An output ends there at the latest.'},
  {name: 'min_tokens', label: 'Fewest tokens', usual: 0, min: 0,
    hint: 'No output ends before.'},
  {name: 'repetition_penalty', label: 'Repetition penalty', usual: 1, min: 0,
    step: 0.1, hint: 'Above 1 makes tokens that were written less likely.'},
  {name: 'no_repeat_ngram_size', label: 'No repeated n-grams of', usual: 0,
    min: 0, hint: 'So many tokens in a row come once only; 0: any may repeat.'},
  {name: 'stop', label: 'Stop strings', rows: 2,
    hint: 'One a line. The first that is written ends the output.'},
  {name: 'prefix', label: 'Begin the output with', rows: 1,
    hint: 'The model goes on from there.'},
];
const REASONS = {
  stop: 'ended by itself', length: 'at the most tokens', timeout: 'out of time',
};
const ALTERNATIVES = 5;  // likeliest tokens that are asked for

// --- Small helpers

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const chosen = (name) => all(`[name="${name}"]:checked`)[0].value;
const count = (n, what) => `${n} ${what}${n === 1 ? '' : 's'}`;
const wait = (seconds) => new Promise((go) => setTimeout(go, 1000 * seconds));
const percent = (p) => p >= 0.9995 ? '100%' :
  `${(100 * p).toFixed(p < 0.01 ? 2 : 1)}%`;

/** Makes an element; texts among its children stay texts. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Makes radio buttons that look like one bar, of {value: [label, hint]}. */
function fillSegments(place, name, entries, changed) {
  place.append(...Object.entries(entries).map(([value, [label]], i) =>
    make('label', {}, make('input', {type: 'radio', name, value,
      checked: i ? null : '', onchange: changed}), label)));
}

async function copy(button, text) {
  const done = await navigator.clipboard?.writeText(text).then(
    () => true, () => false);
  button.textContent = done ? 'Copied' : 'The browser forbids it';
  $('spoken').textContent = button.textContent;
  await wait(1.5);
  button.textContent = 'Copy';
}

// --- The server: its state, its model, its key

const server = {model: '', modes: null, languages: [], state: ''};
const findKey = () => sessionStorage.getItem('atm key');

function setState(state, text) {
  server.state = $('server').dataset.state = state;
  $('server').textContent = text;
}

/** An answer of the server that is no success. */
class ServerError extends Error {
  constructor(status, text, field, seconds) {
    super(text);
    Object.assign(this, {status, field, seconds});
  }
}

/** There is no server, or it broke off. */
class GoneError extends Error {}

const orGone = (promise) => promise.catch(() => {
  throw new GoneError();
});

/** Asks the server; raises GoneError or ServerError. */
async function ask(path, body, signal) {
  const headers = findKey() ? {Authorization: `Bearer ${findKey()}`} : {};
  if (body) headers['Content-Type'] = 'application/json';
  const response = await orGone(fetch(path, {method: body ? 'POST' : 'GET',
    headers, signal, body: body && JSON.stringify(body)}));
  if (response.ok) return response;
  const {error = {}} = await response.json().catch(() => ({}));
  throw new ServerError(response.status,
    error.message || `The server answered ${response.status}.`, error.param,
    response.headers.get('Retry-After'));
}

/** Asks which model there is, and shows what it can do. */
async function connect() {
  const [model] = (await (await ask('v1/models')).json()).data;
  const known = server.model === model.id;
  Object.assign(server, {languages: [], defaults: {}}, model,
    {model: model.id});
  setState('ready', 'Ready');
  showKeyForm(false);
  if (!known) showModel();
  showCode();
}

/** Waits until the server is there (again). */
async function reconnect(text) {
  if (server.state === 'gone') return;
  setState('gone', text);
  for (let seconds = 0.5; ; seconds = Math.min(2 * seconds, 8)) {
    await wait(seconds);
    try {
      if (!(await fetch('health')).ok) continue;
      await connect();
      if ($('error').dataset.kind === 'gone') hideError();
      return;
    } catch (error) {
      if (error.status === 401) return showError(error);
    }
  }
}

function showKeyForm(shown) {
  $('key-form').hidden = !shown;
  $('key-button').setAttribute('aria-expanded', shown);
  if (shown) $('key').focus();
}

// --- Errors

function hideError() {
  $('error').hidden = true;
  for (const field of all('[aria-invalid]')) {
    field.removeAttribute('aria-invalid');
    field.removeAttribute('aria-errormessage');
  }
}

function showError(error) {
  const {status, seconds} = error, gone = error instanceof GoneError;
  const kind = gone || status === 503 ? 'gone' : '';
  let {message} = error;
  if (gone) {
    message = 'The server is gone. This page connects again when it is back.';
    reconnect('Server gone, trying again …');
  } else if (status === 503) {
    reconnect('Server not ready, trying again …');
  } else if (status === 401) {
    setState('', 'Needs an API key');
    message = findKey() ? 'The server does not know this API key.' :
      'This server asks for an API key.';
    showKeyForm(true);
  } else if (status === 429 && seconds) {
    message = message.replace(/\.?$/, `. Wait ${count(+seconds, 'second')}.`);
  }
  $('error').replaceChildren(make('p', {}, message));
  if (kind || status === 429) {
    $('error').append(make('div', {class: 'row'},
      make('button', {type: 'button', onclick: run}, 'Try again')));
  }
  $('error').dataset.kind = kind;
  const name = /^\w*/.exec(error.field || '')[0];
  const [field] = name ? all(`[data-field~="${name}"]`) : [];
  if (field) field.parentElement.append($('error'));
  else $('results').prepend($('error'));
  $('error').hidden = false;
  if (!field) return;
  field.setAttribute('aria-invalid', true);
  field.setAttribute('aria-errormessage', 'error');
  if (field.closest('details')) field.closest('details').open = true;
  field.focus();
}

// --- The request that the controls describe

const translates = () => !$('translate').hidden;

function readSettings() {
  const choice = chosen('choice'), fields = {};
  for (const {name, when, rows} of SETTINGS) {
    const field = $(`set-${name}`);
    if (when && when !== choice) continue;
    if (field.validity.badInput) {
      throw new ServerError(400, `${name}: expected a number`, name);
    }
    if (field.value === '') continue;
    fields[name] = rows ? field.value : Number(field.value);
  }
  if (fields.stop) fields.stop = fields.stop.split('\n').filter(Boolean);
  if (choice === 'beams') {
    const {beams: n = 4, ...others} = fields;
    return {use_beam_search: true, n, best_of: n, ...others};
  }
  return choice === 'greedy' ? {temperature: 0, ...fields} : fields;
}

const readLanguages = () => (
  {source: $('source').value, target: $('target').value});

function readTranslation() {
  const text = $('sentence').value;
  if (server.languages.length) return {text, ...readLanguages()};
  const shots = [...$('shots').children].map((shot) =>
    [...shot.querySelectorAll('textarea')].map((x) => x.value));
  return {text, target: $('target').value,
    shots: shots.filter((pair) => pair.some(Boolean))};
}

function readPrompt() {
  const body = {prompt: $('prompt').value};
  if (chosen('mode')) body.mode = chosen('mode');
  else if (server.languages.length) Object.assign(body, readLanguages());
  if ($('tinted').checked) body.logprobs = ALTERNATIVES;
  return body;
}

/** Returns {path, body} of what is to be asked. */
function readRequest() {
  const body = {model: server.model,
    ...translates() ? readTranslation() : readPrompt(), ...readSettings()};
  if (!body.use_beam_search) body.stream = true;
  if (body.stream && !body.logprobs) {  // these tell how many tokens there are
    body.stream_options = {include_usage: true, continuous_usage_stats: true};
  }
  return {path: translates() ? 'v1/translate' : 'v1/completions', body};
}

// --- Running it

let running = null;  // an AbortController

/** Yields an answer, or the parts in which it comes. */
async function* readAnswer(response) {
  const type = response.headers.get('Content-Type') || '';
  if (!type.startsWith('text/event-stream')) {
    yield await orGone(response.json());
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ''; ;) {
    const {value, done} = await orGone(reader.read());
    if (done) throw new GoneError();
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: ?/gm, '');
      if (data === '[DONE]') return;
      if (!event.startsWith('data:')) continue;
      const part = JSON.parse(data);
      if (part.error) throw new ServerError(500, part.error.message);
      yield part;
    }
  }
}

async function run() {
  if (running) return;
  hideError();
  hideTip();
  let request;
  try {
    request = readRequest();
  } catch (error) {
    return showError(error);
  }
  const control = running = new AbortController();
  const answers = new Answers(request.body);
  const clock = setInterval(() => answers.showFacts(), 200);
  showRunning(true);
  try {
    const response = await ask(request.path, request.body, control.signal);
    for await (const part of readAnswer(response)) answers.add(part);
    answers.end('ended');
  } catch (error) {
    answers.end(control.signal.aborted ? 'stopped by you' : 'broken off');
    if (control.signal.aborted) return;
    if (!answers.parts) $('answers').replaceChildren();
    showError(error);
  } finally {
    running = null;
    clearInterval(clock);
    showRunning(false);
  }
}

function showRunning(is) {
  const [off, on] = is ? [$('run'), $('stop')] : [$('stop'), $('run')];
  const focused = document.activeElement === off;
  on.hidden = false;
  if (focused) on.focus();
  off.hidden = true;
  $('answers').setAttribute('aria-busy', is);
}

// --- Answers

/** The answers to one request, side by side. */
class Answers {
  constructor({n = 1, use_beam_search: beams, target, text}) {
    this.began = performance.now();
    this.list = [];
    this.lang = findTag(target || '');
    this.kind = beams ? 'Beam' : n > 1 ? 'Sample' :
      target ? 'Translation' : 'Answer';
    $('results-title').textContent = n > 1 ? `${this.kind}s` : this.kind;
    $('nothing').hidden = true;
    $('legend').hidden = text != null;  // translations have no probabilities
    $('spoken').textContent = 'Running';
    $('answers').replaceChildren();
    $('results-title').scrollIntoView({block: 'nearest'});
    this.several = n > 1;
    this.find(Math.min(n, 16) - 1);  // the server says if it is no number
    this.showFacts();
  }

  /** Returns the answer of a number; all up to it have their places. */
  find(index) {
    while (this.list.length <= index) {
      const number = this.several ? ` ${this.list.length + 1}` : '';
      this.list.push(new Answer(this.kind + number, this.lang));
    }
    return this.list[index];
  }

  add(part) {
    this.used = part.usage?.completion_tokens ?? this.used;
    for (const choice of part.choices) {
      this.first ??= performance.now();
      this.find(choice.index).add(choice);
    }
    this.parts = (this.parts || 0) + 1;
    this.showFacts();
  }

  showFacts() {
    const since = (time) => (time - this.began) / 1000;
    const seconds = since(performance.now());
    const tokens = this.used ??
      this.list.reduce((sum, x) => sum + x.tokens.length, 0);
    const facts = [`${seconds.toFixed(1)} s`];
    if (tokens) {
      facts.unshift(count(tokens, 'token'),
        `${(tokens / seconds).toFixed(0)} a second`);
    }
    if (this.parts > 1) {
      facts.push(`first after ${since(this.first).toFixed(2)} s`);
    }
    $('facts').textContent = facts.join(' · ');
  }

  end(reason) {
    for (const answer of this.list) answer.end(reason);
    this.showFacts();
    const text = this.list.length === 1 ? this.list[0].text.slice(0, 300) : '';
    $('spoken').textContent = `${reason}: ${$('facts').textContent}. ${text}`;
  }
}

/** One output: its text, cut into tokens where these are told. */
class Answer {
  constructor(title, lang) {
    Object.assign(this, {text: '', tokens: [], drawn: 0, begin: 0, reason: ''});
    this.facts = make('span', {class: 'facts'});
    this.last = make('span', {class: 'read'});  // a prefix; or all, in the end
    this.body = make('p', {class: 'text', dir: 'auto', lang: lang || null},
      this.last);
    this.rows = make('tbody');
    const head = ['token', 'probability', 'instead'].map((x) =>
      make('th', {scope: 'col'}, x));
    this.table = make('details', {hidden: '', ontoggle: () => this.fillTable()},
      make('summary', {}, 'Tokens'),
      make('div', {class: 'wide', tabindex: 0, role: 'region', 'aria-label':
        `Tokens of ${title}`}, make('table', {},
        make('thead', {}, make('tr', {}, ...head)), this.rows)));
    this.card = make('article', {class: 'running', 'aria-label': title},
      make('div', {}, make('h3', {}, title), this.facts,
        make('button', {type: 'button', class: 'quiet',
          'aria-label': `Copy ${title}`, onclick: (event) =>
            copy(event.currentTarget, this.text)}, 'Copy')),
      this.body, this.table);
    this.card.answer = this;
    $('answers').append(this.card);
  }

  add({text, logprobs, finish_reason: reason, score}) {
    this.text += text;
    (logprobs?.tokens || []).forEach((name, i) => this.tokens.push({
      name, at: logprobs.text_offset[i],
      p: Math.exp(logprobs.token_logprobs[i]),
      others: Object.entries(logprobs.top_logprobs?.[i] || {})
        .map(([other, log]) => [other, Math.exp(log)])}));
    this.score = score;
    if (reason) this.end(REASONS[reason] || reason);
    else this.draw();
  }

  /** Draws what is new; a token's text goes on to where the next begins. */
  draw() {
    const {text, tokens} = this;
    while (this.drawn < tokens.length) {
      const {at, p} = tokens[this.drawn];
      const begin = /[\ud800-\udbff]/.test(text) ?  // it counts characters
        Array.from(text).slice(0, at).join('').length : at;
      if (begin >= text.length && !this.reason) break;  // its text comes later
      this.last.textContent = text.slice(this.begin, begin);
      this.last = make('span', {'data-at': this.drawn++});
      this.last.style.setProperty('--doubts', (1 - p).toFixed(3));
      this.begin = begin;
      this.body.append(this.last);
    }
    this.last.textContent = text.slice(this.begin);
    this.last.classList.toggle('read', tokens.length && !this.drawn);
  }

  end(reason) {
    if (this.reason) return;
    this.reason = reason;
    this.draw();
    this.card.classList.remove('running');
    const facts = [reason], {length} = this.tokens;
    if (length) facts.unshift(count(length, 'token'));
    if (this.score != null) facts.unshift(`score ${this.score.toFixed(3)}`);
    this.facts.textContent = facts.join(' · ');
    this.table.hidden = !length;
    if (!length) return;
    this.body.tabIndex = 0;
    this.body.setAttribute('role', 'group');
    this.body.setAttribute('aria-label',
      'Text by tokens: arrow keys tell the probability of each');
  }

  fillTable() {
    if (this.rows.children.length) return;
    this.rows.append(...this.tokens.map(({name, p, others}) => make('tr', {},
      make('td', {}, make('bdi', {}, name)), make('td', {}, percent(p)),
      make('td', {}, ...others.filter(([x]) => x !== name).flatMap(
        ([x, share], i) => [i ? ', ' : '', make('bdi', {}, x.trim() || x),
          ` ${percent(share)}`])))));
  }
}

// --- A token's probability and what else it could have been

const tip = {leaving: 0, current: null};

function hideTip() {
  clearTimeout(tip.leaving);
  $('tip').hidden = true;
  tip.current?.classList.remove('current');
  tip.current = null;
}

/** Leaves time to go to what is shown, which stays as long. */
function hideTipSoon() {
  clearTimeout(tip.leaving);
  tip.leaving = setTimeout(hideTip, 250);
}

function showTip(span) {
  const token = span.closest('article').answer.tokens[span.dataset.at];
  hideTip();
  tip.current = span;
  span.classList.add('current');
  const rows = token.others.map(([name, share]) => {
    const bar = make('i');
    bar.style.setProperty('--share', share);
    return make('li', name === token.name ? {class: 'chosen'} : {},
      make('bdi', {}, name.trim() || '␣'), bar,
      make('span', {}, percent(share)));
  });
  $('tip').replaceChildren(
    make('strong', {}, make('bdi', {}, token.name.trim() || '␣')),
    ` ${percent(token.p)}`, ...rows.length ? [make('ol', {}, ...rows)] : []);
  $('tip').hidden = false;
  placeTip();
  return token;
}

/** Puts what is shown below its token, or above where there is no room. */
function placeTip() {
  const box = $('tip'), edge = document.documentElement.clientWidth - 8;
  const {top, bottom, left} = tip.current.getClientRects()[0];
  const below = bottom + 6 + box.offsetHeight < innerHeight;
  box.style.top = `${below ? bottom + 6 : top - box.offsetHeight - 6}px`;
  box.style.left = `${Math.max(8, Math.min(left, edge - box.offsetWidth))}px`;
}

/** Goes to a token near the current one, or to the first. */
function moveTip(body, step) {
  const spans = [...body.querySelectorAll('[data-at]')].filter((x) =>
    x.textContent);
  if (!spans.length) return;
  const at = Math.max(spans.indexOf(tip.current), 0) + step;
  const {name, p, others} = showTip(
    spans[Math.min(Math.max(at, 0), spans.length - 1)]);
  const [other] = others.filter(([x]) => x !== name);
  $('spoken').textContent = `${name}: ${percent(p)}` +
    (other ? `; ${other[0]}: ${percent(other[1])}` : '');
}

function listenToTokens(place) {
  const show = ({target}) => target.dataset.at && showTip(target);
  place.addEventListener('pointerover', show);
  place.addEventListener('click', show);
  place.addEventListener('pointerout', hideTipSoon);
  place.addEventListener('focusin', ({target}) => {
    if (target.matches('.text:focus-visible')) moveTip(target, 0);
  });
  place.addEventListener('focusout', hideTip);
  place.addEventListener('keydown', (event) => {
    const body = event.target;
    if (!body.matches('.text')) return;
    const on = getComputedStyle(body).direction === 'rtl' ? -1 : 1;
    const step = {ArrowRight: on, ArrowLeft: -on, Home: -Infinity,
      End: Infinity}[event.key];
    if (!step) return;
    event.preventDefault();
    moveTip(body, body.contains(tip.current) ? step : 0);
  });
  $('tip').addEventListener('pointerenter', () => clearTimeout(tip.leaving));
  $('tip').addEventListener('pointerleave', hideTip);
  addEventListener('scroll', () => tip.current && placeTip(),
    {passive: true, capture: true});
}

// --- The request as code

const quoted = (text) => `'${text.replaceAll('\'', '\'\\\'\'')}'`;
const address = (path) => new URL(path, document.baseURI).href;

/** Writes a value in Python. */
function python(value, indent = '') {
  if (value === true) return 'True';
  if (typeof value !== 'object') return JSON.stringify(value);
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    return `[${value.map((x) => python(x, inner)).join(', ')}]`;
  }
  const rows = Object.entries(value).map(([name, x]) =>
    `${inner}"${name}": ${python(x, inner)},\n`);
  return `{\n${rows.join('')}${indent}}`;
}

function writeCurl({path, body}) {
  return `curl -N ${quoted(address(path))} \\\n` +
    '  -H \'Content-Type: application/json\' \\\n' +
    (findKey() ? '  -H "Authorization: Bearer $API_KEY" \\\n' : '') +
    `  -d ${quoted(JSON.stringify(body, null, 2))}`;
}

// Arguments of the openai client's completions.create; others go in extra_body.
const OPENAI = ['model', 'prompt', 'n', 'best_of', 'temperature', 'top_p',
  'max_tokens', 'seed', 'stop', 'logprobs', 'stream', 'stream_options'];

function writePython({path, body}) {
  const key = findKey() ? 'os.environ["API_KEY"]' : '"none"';
  const head = (findKey() ? 'import os\n\n' : '') +
    'from openai import OpenAI\n\nclient = OpenAI(' +
    `base_url=${python(address('v1'))}, api_key=${key})\n`;
  if (path !== 'v1/completions') {
    const {stream, stream_options: options, ...whole} = body;
    return `${head}answer = client.post(\n  "/${path.slice(3)}",\n` +
      `  cast_to=dict,\n  body=${python(whole, '  ')},\n)\n` +
      'for choice in answer["choices"]:\n  print(choice["text"])';
  }
  const split = Object.groupBy(Object.entries(body), ([name]) =>
    OPENAI.includes(name) ? 'own' : 'extra');
  if (split.extra) {
    split.own.push(['extra_body', Object.fromEntries(split.extra)]);
  }
  const lines = split.own.map(([name, x]) => `  ${name}=${python(x, '  ')},\n`);
  return `${head}answer = client.completions.create(\n${lines.join('')})\n` +
    (body.stream ? 'for part in answer:\n  for choice in part.choices:\n' +
    '    print(choice.text, end="", flush=True)\nprint()' :
    'for choice in answer.choices:\n  print(choice.text)');
}

function showCode() {
  const {value, placeholder} = $('set-max_tokens');
  $('settings-now').textContent = CHOICES[chosen('choice')][0].toLowerCase() +
    `, at most ${count(+(value || placeholder), 'token')}`;
  try {
    const write = chosen('code') === 'curl' ? writeCurl : writePython;
    $('code-text').textContent = write(readRequest());
  } catch {
    // A setting is no number, as `run` tells.
  }
}

// --- Controls

/** Returns a prompt in a language: the begin of a text, or one with a gap. */
function makeExample(lang, mode) {
  const cutter = new Intl.Segmenter(lang, {granularity: 'word'});
  const words = [];  // each with what stands behind it
  for (const {segment, isWordLike} of cutter.segment(TEXTS[lang][0])) {
    if (isWordLike || !words.length) words.push(segment);
    else words[words.length - 1] += segment;
  }
  const half = Math.ceil(words.length / 2);
  if (mode === 'clm') return words.slice(0, half).join('').trim();
  words.splice(half - 1, 2);
  return words.join('');
}

/** Returns 'de' for 'deu_Latn' and 'de_DE', 'zh-Hant' for 'zho_Hant', or ''. */
function findTag(code) {
  const tag = code.replace(/_[A-Z]{2}$/, '').replaceAll('_', '-');
  try {
    const {language, script} = new Intl.Locale(tag);
    const usual = new Intl.Locale(language).maximize().script;
    return script && script !== usual ? `${language}-${script}` : language;
  } catch {
    return '';
  }
}

const isLanguage = (code, lang) => findTag(code).split('-')[0] === lang;

/** Returns a language's name, in English or in itself; or its code. */
function nameLanguage(code, own = false) {
  const tag = findTag(code);
  const name = tag && new Intl.DisplayNames([own ? tag : 'en'], {
    type: 'language', languageDisplay: 'standard', fallback: 'none'}).of(tag);
  return name ? name[0].toLocaleUpperCase(tag) + name.slice(1) : code;
}

function fillChips(place, act) {
  place.append(...Object.keys(TEXTS).map((lang) => make('button', {
    type: 'button', lang, title: nameLanguage(lang), onclick: () => {
      act(lang);
      showCode();
    }}, make('bdi', {}, nameLanguage(lang, true)))));
}

function showMode() {
  $('mode-hint').textContent = MODES[chosen('mode')][1];
}

function showChoice() {
  const choice = chosen('choice');
  $('choice-hint').textContent = CHOICES[choice][1];
  for (const {name, when} of SETTINGS) {
    $(`set-${name}`).closest('.setting').hidden = when && when !== choice;
  }
}

function addShot(texts = ['', '']) {
  const shot = make('div', {class: 'pair shot'});
  const area = (label, text) => make('textarea', {rows: 2, dir: 'auto',
    'aria-label': label, placeholder: label, 'data-field': 'shots'}, text);
  shot.append(area('Sentence', texts[0]), area('Its translation', texts[1]),
    make('button', {type: 'button', class: 'quiet', onclick: () => {
      shot.remove();
      $('add-shot').focus();
      showCode();
    }, 'aria-label': 'Remove this example'}, 'Remove'));
  $('shots').append(shot);
}

/** Shows an example of a translation into the target, and a text for it. */
function showFirstShot() {
  const to = $('target').value, from = to === 'en' ? 'de' : 'en';
  $('shots').replaceChildren();
  addShot([TEXTS[from][1], TEXTS[to][1]]);
  const isOurs = Object.values(TEXTS).some(([x]) => x === $('sentence').value);
  if (isOurs) $('sentence').value = TEXTS[from][0];
}

/** Shows the modes, the languages and the settings that the model has. */
function showModel() {
  const {model, modes, languages, defaults} = server;
  $('model').textContent = model;
  document.title = `${model} – atm serve`;
  for (const input of all('[name=mode]')) {
    input.disabled = input.value && modes && !modes.includes(input.value);
    if (input.disabled && input.checked) {
      all('[name=mode][value=""]')[0].click();
    }
  }
  for (const {name, value} of SETTINGS) {
    if (!(name in defaults)) continue;
    $(`set-${name}`)[value == null ? 'placeholder' : 'value'] = defaults[name];
  }
  if (defaults.beams > 1) all('[name=choice][value=beams]')[0].click();
  const codes = languages.length ? [...languages] : Object.keys(TEXTS);
  codes.sort((a, b) => nameLanguage(a).localeCompare(nameLanguage(b)));
  for (const [id, lang] of [['source', 'en'], ['target', 'de']]) {
    $(id).replaceChildren(...codes.map((value) => make('option', {value},
      [...new Set([nameLanguage(value), value])].join(' · '))));
    $(id).value = codes.find((x) => isLanguage(x, lang)) || codes[0];
  }
  for (const chip of $('sentences').children) {
    chip.hidden = !codes.some((x) => isLanguage(x, chip.lang));
  }
  const byCode = languages.length > 0;
  $('source-part').hidden = $('swap').hidden = !byCode;
  $('shots-part').hidden = byCode;
  $('translate-hint').textContent = byCode ?
    'This model was trained to translate between these languages.' :
    'This model learns from examples how to translate: one is enough.';
  if (byCode) selectTab($('tab-translate'));
  else showFirstShot();
}

function selectTab(tab) {
  hideTip();
  for (const other of all('[role=tab]')) {
    other.setAttribute('aria-selected', other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    $(other.getAttribute('aria-controls')).hidden = other !== tab;
  }
  if (server.languages.length) {
    $(tab.getAttribute('aria-controls')).prepend($('languages'));
  }
  $('run').textContent = translates() ? 'Translate' : 'Run';
  showCode();
}

function buildSettings() {
  const group = (title, ...rows) => make('fieldset', {},
    make('legend', {class: 'visually-hidden'}, title), ...rows);
  const rows = SETTINGS.map(({name, label, hint, value, usual, rows, min, max,
    step = 1}) => {
    const id = `set-${name}`;
    const attributes = {id, value, placeholder: usual, 'data-field': name,
      'aria-describedby': `${id}-hint`};
    const field = rows ? make('textarea', {...attributes, rows, dir: 'auto'}) :
      make('input', {...attributes, type: 'number', min, max, step});
    return make('div', {class: rows ? 'setting long' : 'setting'},
      make('label', {for: id}, label), field,
      make('p', {class: 'hint', id: `${id}-hint`}, hint));
  });
  const title = 'How tokens are chosen';
  const bar = make('span', {class: 'segments'});
  fillSegments(bar, 'choice', CHOICES, showChoice);
  const own = SETTINGS.filter((x) => x.when).length;
  $('settings-body').append(
    group(title, make('div', {class: 'label', 'aria-hidden': true}, title),
      make('div', {}, bar), make('p', {class: 'hint', id: 'choice-hint'}),
      ...rows.slice(0, own)),
    group('All outputs', ...rows.slice(own)));
  $('set-beams').dataset.field = 'best_of use_beam_search beams';
}

// --- Start

function listenToForms() {
  $('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    run();
  });
  $('key-form').addEventListener('submit', (event) => {
    event.preventDefault();
    sessionStorage.setItem('atm key', $('key').value);
    hideError();
    connect().catch(showError);
  });
  $('key-button').addEventListener('click', () =>
    showKeyForm($('key-form').hidden));
  $('stop').addEventListener('click', () => running?.abort());
  addEventListener('keydown', (event) => {
    if (event.isComposing) return;  // keys of an input method
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === 'Escape') {
      running?.abort();
      hideTip();
    }
  });
  addEventListener('input', showCode);
  $('tinted').addEventListener('change', ({target}) =>
    $('answers').classList.toggle('plain', !target.checked));
  $('copy-code').addEventListener('click', ({currentTarget}) =>
    copy(currentTarget, $('code-text').textContent));
}

function listenToTabs() {
  const tabs = all('[role=tab]');
  for (const [i, tab] of tabs.entries()) {
    tab.addEventListener('click', () => selectTab(tab));
    tab.addEventListener('keydown', ({key}) => {
      if (key !== 'ArrowLeft' && key !== 'ArrowRight') return;
      selectTab(tabs[1 - i]);
      tabs[1 - i].focus();
    });
  }
  $('add-shot').addEventListener('click', () => {
    addShot();
    $('shots').lastChild.firstChild.focus();
  });
  $('target').addEventListener('change', () => {
    if (!server.languages.length) showFirstShot();
  });
  $('swap').addEventListener('click', () => {
    [$('source').value, $('target').value] =
      [$('target').value, $('source').value];
    showCode();
  });
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem('atm theme', theme);
}

function start() {
  setTheme(localStorage.getItem('atm theme') || '');
  for (const input of all('[name=theme]')) {
    input.checked = input.value === localStorage.getItem('atm theme');
    input.addEventListener('change', () => setTheme(input.value));
  }
  buildSettings();
  fillSegments($('modes'), 'mode', MODES, showMode);
  for (const [chips, id, write] of [
    ['examples', 'prompt', (lang) => makeExample(lang, chosen('mode'))],
    ['sentences', 'sentence', (lang) => {
      const code = server.languages.find((x) => isLanguage(x, lang));
      if (code) $('source').value = code;
      return TEXTS[lang][0];
    }],
  ]) {
    $(id).value ||= write('en');
    fillChips($(chips), (lang) => {
      $(id).value = write(lang);
      $(id).focus();
    });
  }
  $('settings').open = matchMedia('(min-width: 64rem)').matches;
  showMode();
  showChoice();
  listenToForms();
  listenToTabs();
  listenToTokens($('answers'));
  connect().catch((error) => error.status === 503 ?
    reconnect('Server not ready, trying again …') : showError(error));
}

start();
