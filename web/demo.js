/**
 * The demo page: join a call, see who watches and what arrives, send animations to everyone.
 *
 * Everything shown comes from relay.js; text from others reaches the page as text only.
 * SPDX-License-Identifier: Apache-2.0
 */
import { newEventId, Relay } from "/relay.js";
import { ANIMATIONS, Effects } from "/effects.js";
import { $, caption, copyFrom, didWhat, el, LogView, nameOf, plural, showWatchers, SnippetView, StatusView } from "/views.js";

const DEFAULT_CALL = "default:demo";
const CID = /^[\w-]{1,64}:[\w.!@-]{1,128}$/;
const EMOJIS = ["🎉", "👏", "🔥", "😍", "🚀", "🦄"];

/** localStorage may be switched off; then the name is simply not remembered. */
const memory = {
  get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* as said */ } },
};

/** What a payload asks for: {kind, emoji} or null. The sender may be anybody: check every part. */
function animationOf(event) {
  const kind = event.custom?.["render-animation"];
  if (typeof kind !== "string" || !ANIMATIONS.includes(kind)) return null;
  const emoji = kind === "emoji" ? firstGlyph(event.custom.emoji) : "";
  return { kind, emoji };
}

/** The first character as a reader sees it ("👩‍🚀" is one), at most 16 code units; "🎉" if there is none. */
function firstGlyph(text) {
  if (typeof text !== "string" || text.trim() === "") return "🎉";
  const trimmed = text.trim().slice(0, 64);
  const first = Intl.Segmenter ? [...new Intl.Segmenter().segment(trimmed)][0].segment : [...trimmed][0];
  return first.slice(0, 16);
}

/**
 * Which way an event came, as far as an event can tell. The relay does not say through which of its
 * doors: the API, a webhook and Redis all look the same here, and are meant to.
 */
function viaOf(event, { own, me }) {
  if (own.has(event.event_id)) return "this page";
  if (event.user?.id !== undefined && event.user.id === me?.id) return "your token";
  if (String(event.event_id).startsWith("ingest:")) return "Redis";
  return String(event.user?.id).startsWith("guest-") ? "another page" : "a backend";
}

// --- the room -----------------------------------------------------------------------------------

/** One joined call: wires the connection to what is seen. */
class Room {
  #own = new Set(); // event ids sent from here, the last 500
  #away = false; // whether the connection was cut since the last catching up
  #status;
  #log = new LogView();
  #snippets = new SnippetView();
  #last = { "render-animation": "balloons" };

  constructor({ settings, name, cid, login, effects, status }) {
    Object.assign(this, { settings, name, cid, login, effects });
    this.#status = status;
    this.relay = new Relay({
      apiKey: settings.api_key, user: login.user, token: login.token, tokenProvider: () => this.#loginAgain(),
    });
    this.call = this.relay.watch(cid);
    this.relay.on("state", (state) => this.#stateChanged(state));
    this.call.on("event", (event, meta) => this.#arrived(event, meta));
    this.call.on("watchers", (watchers) => showWatchers(watchers, this.relay.user));
    this.call.on("watching", () => (this.#away = false));
    this.call.on("recovered", ({ count }) => this.#caughtUp(count));
    this.call.on("gap", (gap) => this.#historyLost(gap));
    this.call.on("error", (error) => this.#refused(error));
    $("room-title").textContent = cid;
    this.#showSnippet();
  }

  /** Send what a button stands for; everyone, this page included, shows it when it comes back. */
  async send(custom) {
    const eventId = newEventId();
    this.#last = custom;
    this.#showSnippet();
    this.#own.add(eventId);
    if (this.#own.size > 500) this.#own.delete(this.#own.values().next().value);
    try {
      await this.call.send(custom, { eventId });
    } catch (error) {
      const may = error.outcome === "unknown" ? " (it may have arrived)" : "";
      this.#log.marker("error", `Not sent: ${error.message}${may}`);
    }
  }

  async #loginAgain() {
    this.login = await logIn(this.settings, this.name);
    this.#showSnippet();
    return this.login;
  }

  #showSnippet() {
    const { settings, cid, login } = this;
    this.#snippets.show({ base: location.origin, apiKey: settings.api_key, cid, token: login.token, custom: this.#last });
  }

  #arrived(event, { missed }) {
    const animation = animationOf(event);
    const who = nameOf(event.user);
    const label = animation ? `${who} ${didWhat(animation)}` : "";
    const play = () => this.#play(animation, label);
    const via = viaOf(event, { own: this.#own, me: this.relay.user });
    this.#log.event(event, { animation, via, missed, who, replay: play });
    // What was missed is listed, not played: an hour's worth at once would be no pleasure.
    if (animation && !missed) play();
  }

  #play({ kind, emoji }, label) {
    const moving = this.effects.play(kind, { emoji, label });
    if (moving && !matchMedia("(prefers-reduced-motion: reduce)").matches) caption({ kind, emoji, label }, false);
  }

  #stateChanged({ state, reason, retryAt, error }) {
    const status = this.#status;
    if (state === "open") {
      status.show("open", "Live", this.#away ? "Connected again" : "Connected");
      status.hide("waiting");
    } else if (state === "connecting") {
      status.show("connecting", this.#away ? "Reconnecting…" : "Connecting…", null);
    } else if (state === "waiting") {
      this.#wentAway(reason);
      status.show("waiting", "Offline", `Connection lost: ${reason}. It will be tried again.`);
      this.#countDown(reason, retryAt);
    } else {
      status.show("closed", "Disconnected");
      status.notice("closed", "Disconnected.", `${error.message}.`, ["Join again", () => location.reload()]);
    }
  }

  #wentAway(reason) {
    if (!this.#away && this.call.position) this.#log.marker("lost", `Connection lost: ${reason}`);
    this.#away = true;
  }

  #countDown(reason, retryAt) {
    const status = this.#status;
    status.notice("waiting", this.call.position ? "Connection lost." : "Not connected.", "", ["Try now", () => this.relay.connect()]);
    status.countDown(retryAt, (seconds) => {
      const waiting = this.relay.pending > 0 ? ` ${plural(this.relay.pending, "event")} of yours will follow.` : "";
      const when = this.relay.state === "waiting" && seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now.";
      if (this.relay.state === "waiting") $("status-text").textContent = seconds > 0 ? `Retry in ${seconds} s` : "Retrying…";
      $("notice-text").textContent = `${reason[0].toUpperCase()}${reason.slice(1)}. ${when}${waiting}`;
    });
  }

  #caughtUp(count) {
    const text = count === 0 ? "nothing was missed" : `${plural(count, "event")} you missed`;
    this.#log.marker("caught-up", `Caught up: ${text}`);
    $("announce").textContent = `Caught up: ${text}`;
    this.#status.notice("caught-up", "Caught up:", `${text}.`);
    this.#status.hideLater(8_000);
  }

  /** Say it plainly; a new epoch means that the relay began anew and kept nothing. */
  #historyLost({ from, to }) {
    const why = from.epoch === to.epoch
      ? "More happened meanwhile than the relay keeps."
      : "The relay was restarted, and what it kept is gone.";
    this.#log.marker("gap", "History was lost. Live again from here.");
    $("announce").textContent = `History was lost. ${why} Live again from here.`;
    this.#status.notice("gap", "History was lost.", `${why} What you missed cannot be shown; you are live again from here.`);
  }

  #refused(error) {
    this.#log.marker("error", `The relay refused this call: ${error.message}`);
    this.#status.notice("error", "Not watching.", `The relay refused this call: ${error.message}.`);
  }
}

// --- start --------------------------------------------------------------------------------------

/** A guest's id is made from the name; the relay adds what makes it unique. */
function logIn(settings, name) {
  const id = name.normalize("NFKD").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 32) || "guest";
  return Relay.guest({ apiKey: settings.api_key, user: { id, name } });
}

async function loadSettings() {
  const answer = await fetch("/demo.json");
  if (!answer.ok) throw new Error(`the relay answered ${answer.status}`);
  return answer.json();
}

function chosenEmoji() {
  const own = $("emoji-own").value.trim();
  return own ? firstGlyph(own) : document.querySelector("input[name=emoji]:checked")?.value ?? EMOJIS[0];
}

function setUpEmojis() {
  const choices = EMOJIS.map((emoji, i) => el("label", { class: "choice" },
    el("input", { type: "radio", name: "emoji", value: emoji, checked: i === 0, ariaLabel: emoji }), emoji));
  $("emojis").querySelector("legend").after(...choices);
  $("emojis").addEventListener("input", ({ target }) => {
    if (target.name === "emoji") $("emoji-own").value = "";
    $("emoji-shown").textContent = chosenEmoji();
  });
}

function setUpButtons(room) {
  $("room").addEventListener("click", ({ target }) => {
    const kind = target.closest("button[data-animation]")?.dataset.animation;
    if (kind) room.send(kind === "emoji" ? { "render-animation": kind, emoji: chosenEmoji() } : { "render-animation": kind });
  });
  $("invite").addEventListener("click", () => copyFrom($("invite"), `${location.origin}/?call=${encodeURIComponent(room.cid)}`));
}

function refuseForm(field, message) {
  $("join-error").textContent = message;
  field?.setAttribute("aria-invalid", "true");
  field?.focus();
}

/** Check the form: {name, cid}, or null after saying what is wrong. */
function readForm({ name: nameField, call: callField }) {
  [nameField, callField].forEach((field) => field.removeAttribute("aria-invalid"));
  $("join-error").textContent = "";
  const name = nameField.value.trim();
  const cid = callField.value.trim();
  if (!name) return void refuseForm(nameField, "Please give a name.");
  if (!CID.test(cid)) return void refuseForm(callField, "A call is written type:id, for example default:demo.");
  return { name, cid };
}

async function join(form, effects, status) {
  const entry = readForm(form.elements);
  if (!entry) return;
  const button = form.querySelector("button");
  button.disabled = true;
  status.show("connecting", "Connecting…");
  try {
    const settings = await loadSettings();
    const login = await logIn(settings, entry.name);
    memory.set("relay.name", entry.name);
    enter(new Room({ settings, login, effects, status, ...entry }));
  } catch (error) {
    status.show("idle", "Not joined", null);
    refuseForm(null, `That did not work: ${error.message}. Please try again.`);
  } finally {
    button.disabled = false;
  }
}

function enter(room) {
  window.relayDemo = { relay: room.relay, call: room.call, effects: room.effects };
  history.replaceState(null, "", `?call=${encodeURIComponent(room.cid).replace("%3A", ":")}`);
  document.title = `${room.cid} · Relay`;
  $("version").textContent = room.settings.version ?? "";
  $("welcome").hidden = true;
  $("room").hidden = false;
  setUpButtons(room);
  document.querySelector("[data-animation]").focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Night falls over the whole page, so that its text stays readable under the fireworks. */
const onNight = (on) => document.documentElement.classList.toggle("night", on);

function start() {
  const effects = new Effects($("sky"), { onCalm: (facts) => caption(facts, true), onNight });
  const status = new StatusView();
  const form = $("join");
  const wanted = new URLSearchParams(location.search).get("call");
  form.elements.call.value = wanted && CID.test(wanted) ? wanted : DEFAULT_CALL;
  form.elements.name.value = memory.get("relay.name") ?? "";
  if (wanted && !CID.test(wanted)) refuseForm(form.elements.call, "The link names no call; a call is written type:id.");
  form.addEventListener("submit", (submit) => {
    submit.preventDefault();
    join(form, effects, status);
  });
  setUpEmojis();
  window.relayDemo = { relay: null, call: null, effects };
}

start();
