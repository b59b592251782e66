/**
 * What the demo page shows: the connection's state, who watches, what arrives, the lines to copy.
 *
 * It knows the page's elements and nothing of the connection. Text from others becomes text nodes.
 * SPDX-License-Identifier: Apache-2.0
 */

const ROWS = 200; // kept in the log
const VERBS = {
  balloons: "let balloons go", confetti: "threw confetti", hearts: "sent hearts", fireworks: "lit fireworks", snow: "made it snow",
};

export const $ = (id) => document.getElementById(id);

/** Return an element with properties (`dataset` and `class` too) and children; strings become text. */
export function el(name, { dataset = {}, class: className = "", ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  if (className) element.className = className;
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

/** Return a drawing from the page's own symbols. */
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A name as it is shown: others choose theirs, and may choose a novel. */
export const nameOf = (user) => {
  const name = String(user?.name || user?.id || "Somebody");
  return name.length > 48 ? `${name.slice(0, 47)}…` : name;
};

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

// --- connection state ---------------------------------------------------------------------------

/** The pill, the notice above the page, and what a screen reader is told. */
export class StatusView {
  #timer = 0;
  #action = null;

  constructor() {
    $("notice-button").addEventListener("click", () => this.#action?.());
  }

  show(state, text, announcement = text) {
    $("status").dataset.state = state;
    $("status-text").textContent = text;
    if (announcement) $("announce").textContent = announcement;
  }

  /** `action`: [label, fn]; without one the notice can be dismissed. */
  notice(kind, title, text, action = ["OK", () => this.hide()]) {
    this.#stop();
    $("notice").dataset.kind = kind;
    $("notice-title").textContent = title;
    $("notice-text").textContent = text;
    $("notice-button").textContent = action[0];
    this.#action = action[1];
    $("notice").hidden = false;
  }

  hide(only = null) {
    if (only && $("notice").dataset.kind !== only) return;
    this.#stop();
    $("notice").hidden = true;
  }

  hideLater(ms) {
    this.#timer = setTimeout(() => this.hide(), ms);
  }

  /** Count down to `at` (ms since the epoch): `each(seconds left)` now and every quarter second. */
  countDown(at, each) {
    const tick = () => {
      each(Math.max(0, Math.ceil((at - Date.now()) / 1000)));
      this.#timer = setTimeout(tick, 250);
    };
    tick();
  }

  #stop() {
    clearTimeout(this.#timer);
  }
}

// --- who is watching ----------------------------------------------------------------------------

const initials = (name) => [...name.trim()].slice(0, 1).join("") || "?";

/** The same person has the same colour on every screen. */
function colorOf(id) {
  let sum = 0;
  for (const char of id) sum = (sum * 31 + char.codePointAt(0)) % 997;
  return `c${sum % 6}`;
}

/** Make `items` the children of `list` without touching those that stay: they would appear anew. */
function place(list, items) {
  for (const item of [...list.children]) if (!items.includes(item)) item.remove();
  items.forEach((item, i) => list.children[i] === item || list.insertBefore(item, list.children[i] ?? null));
}

/** You first, the others as the relay lists them. */
export function showWatchers({ count, users: listed }, me) {
  const users = [...listed.filter(({ id }) => id === me?.id), ...listed.filter(({ id }) => id !== me?.id)];
  const names = users.map(nameOf);
  const shown = new Map([...$("watchers").children].map((item) => [item.dataset.user, item]));
  const items = users.map((user, i) => {
    const mine = user.id === me?.id;
    return shown.get(user.id) ?? el("li", {
      class: `avatar ${colorOf(user.id)}${mine ? " me" : ""}`, title: names[i] + (mine ? " (you)" : ""), dataset: { user: user.id },
    }, el("span", { ariaHidden: "true" }, initials(names[i])), el("span", { class: "quiet" }, names[i]));
  });
  place($("watchers"), items);
  const first = users.map((user, i) => (user.id === me?.id ? "you" : names[i])).slice(0, users.length > 5 ? 4 : 5); // "and 1 other" could have been the name
  const more = users.length - first.length;
  const pages = count > users.length ? `, on ${count} screens` : "";
  const alone = count === 1 && users[0]?.id === me?.id;
  $("watchers-text").textContent = alone ? "Just you so far" : first.join(", ") + (more > 0 ? ` and ${plural(more, "other")}` : "") + pages;
}

// --- the log ------------------------------------------------------------------------------------

/** Rows, newest first. Inserted in batches, so that a storm of events is one layout a frame. */
export class LogView {
  #batch = [];
  #timer = 0;

  add(item) {
    this.#batch.push(item);
    if (this.#batch.length > ROWS) this.#batch.shift();
    this.#timer ||= setTimeout(() => this.#flush(), 16);
  }

  marker(kind, text) {
    this.add(el("li", { class: "marker", dataset: { kind } }, el("span", {}, text)));
  }

  event(event, facts) {
    this.add(eventRow(event, facts));
  }

  #flush() {
    this.#timer = 0;
    $("events").prepend(...this.#batch.splice(0).reverse());
    while ($("events").childElementCount > ROWS) $("events").lastElementChild.remove();
    $("log-empty").hidden = true;
  }
}

export const didWhat = ({ kind, emoji }) => VERBS[kind] ?? `sent ${emoji}`;

/** One event: who, what, which way, when, at which offset. */
function eventRow(event, { animation, via, missed, who, replay }) {
  const picture = animation?.emoji ? el("span", {}, animation.emoji) : icon(animation?.kind ?? "other");
  const other = event.type === "custom" ? "sent custom data" : event.type;
  const what = el("p", { class: "what" }, el("b", {}, who), ` ${animation ? didWhat(animation) : other} `);
  if (missed) what.append(el("span", { class: "chip" }, "missed"));
  const row = el("li", { class: `row${missed ? " missed" : ""}`, dataset: { type: event.type, missed: String(missed), via } },
    el("span", { class: "icon", ariaHidden: "true" }, picture), what);
  if (animation) row.dataset.animation = animation.kind;
  if (missed && animation) row.append(el("button", { class: "small", type: "button", onclick: replay }, "Play"));
  if (event.offset !== undefined) row.dataset.offset = event.offset;
  const offset = event.offset === undefined ? "not kept" : `#${event.offset}`;
  row.append(el("p", { class: "where" }, el("span", {}, `via ${via}`), timeOf(event.created_at), el("span", { title: event.epoch ?? "" }, offset)));
  if (!animation) row.append(el("code", { class: "payload" }, payloadOf(event)));
  return row;
}

function timeOf(createdAt) {
  const date = new Date(createdAt);
  if (Number.isNaN(date.getTime())) return el("span", {}, "no time");
  return el("time", { dateTime: date.toISOString(), title: date.toLocaleString() }, date.toLocaleTimeString());
}

function payloadOf({ type, custom, created_at, call_cid, event_id, epoch, offset, user, ...rest }) {
  const text = JSON.stringify(type === "custom" ? custom : rest) ?? "";
  return text.length > 240 ? `${text.slice(0, 240)}…` : text;
}

/** Which animation was shown by whom: three at most, for those who do not see the log. */
export function caption({ kind, emoji, label }, calm) {
  const picture = kind === "emoji" ? el("span", { class: "glyph" }, emoji) : icon(kind);
  const item = el("p", { class: "caption", dataset: { kind } }, picture, el("span", { class: "text" }, label));
  item.addEventListener("animationend", () => item.remove());
  $("captions").classList.toggle("calm", calm);
  $("captions").append(item);
  while ($("captions").childElementCount > 3) $("captions").firstElementChild.remove();
}

// --- the lines to copy --------------------------------------------------------------------------

/** Quote for a POSIX shell. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The commands that do what the last pressed button did, as [text, class] pieces. */
const SNIPPETS = {
  curl: {
    note: "Sends as you: the line carries your guest token, so keep it to yourself.",
    line({ base, apiKey, cid, token, custom }) {
      const [type, id] = cid.split(":");
      const url = `${base}/video/call/${type}/${encodeURIComponent(id)}/event?api_key=${encodeURIComponent(apiKey)}`;
      return [["curl -X POST "], [quoted(url)], [" \\\n  -H 'Content-Type: application/json' -H 'stream-auth-type: jwt' \\\n  -H "],
        [quoted(`Authorization: ${token}`), "token"], [" \\\n  -d "], [quoted(JSON.stringify({ custom })), "value"]];
    },
  },
  relay: {
    note: "In a second terminal, where the relay is installed.",
    line({ base, cid, custom }) {
      const call = /^[\w:-]+$/.test(cid) ? cid : quoted(cid);
      const url = base === "http://127.0.0.1:8000" ? "" : ` --url ${quoted(base)}`;
      const event = "emoji" in custom ? quoted(JSON.stringify(custom)) : custom["render-animation"];
      return [[`relay send${url} ${call} `], [event, "value"]];
    },
  },
  redis: {
    note: "When the relay runs on Redis. Live and not kept: only who watches now sees it.",
    line({ cid, custom }) {
      return [["redis-cli PUBLISH relay:live "], [quoted(JSON.stringify({ type: "custom", call_cid: cid, custom })), "value"]];
    },
  },
};

export class SnippetView {
  #name = "curl";
  #facts = null;

  constructor() {
    const tabs = [...document.querySelectorAll("[data-snippet]")];
    tabs.forEach((tab, i) => {
      tab.addEventListener("click", () => this.#select(tabs, tab));
      tab.addEventListener("keydown", ({ key }) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
        if (step) this.#select(tabs, tabs.at((i + step) % tabs.length), true);
      });
    });
    $("snippet-copy").addEventListener("click", () => copyFrom($("snippet-copy"), $("snippet-code").textContent));
  }

  show(facts) {
    this.#facts = facts;
    const { line, note } = SNIPPETS[this.#name];
    $("snippet-code").replaceChildren(...line(facts).map(([text, name]) => (name ? el("span", { class: name }, text) : text)));
    $("snippet-note").textContent = note;
  }

  #select(tabs, tab, focus = false) {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
    }
    if (focus) tab.focus();
    this.#name = tab.dataset.snippet;
    $("snippet").setAttribute("aria-labelledby", tab.id);
    if (this.#facts) this.show(this.#facts);
  }
}

/** Copy, and say so on the button. The clipboard API is missing on plain-http pages of other hosts. */
export async function copyFrom(button, text) {
  const label = button.querySelector("span");
  const before = button.dataset.label ?? label.textContent;
  button.dataset.label = before;
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyTheOldWay(text);
  }
  label.textContent = copied ? "Copied" : "Select and copy";
  $("announce").textContent = copied ? "Copied" : "Copying failed";
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => (label.textContent = before), 1800);
}

function copyTheOldWay(text) {
  const area = el("textarea", { value: text, class: "quiet", readOnly: true });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}
