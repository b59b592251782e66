/**
 * The Relay client: watch calls, receive their events, send your own, over one WebSocket.
 *
 *   import { Relay } from "/relay.js";
 *
 *   const { user, token } = await Relay.guest({ apiKey: "demo", user: { id: "ada", name: "Ada" } });
 *   const relay = new Relay({ apiKey: "demo", user, token });
 *   const call = relay.watch("default:demo");
 *   call.on("event", (event) => console.log(event.user?.name, event.custom));
 *   await call.send({ "render-animation": "balloons" });
 *
 * It reconnects by itself (full jitter, capped), continues every call from its last position,
 * drops repeats, repeats a `send` whose answer was lost under the same event_id, and says so
 * (`gap`) when something was lost for good. When a process of the relay stops it moves to another
 * one before it lets go of the first, and with a `tokenProvider` it renews the token before it
 * expires. Every queue is bounded and every wait is limited.
 *
 * No dependency, no build step. Browsers, and Node 20 or newer with `WebSocket` from `ws`.
 * Types: relay.d.ts. The wire protocol: docs/protocol.md.
 *
 * SPDX-License-Identifier: Apache-2.0
 */

/** Waits, in milliseconds. Each can be set with `new Relay({ timing: { … } })`. */
export const TIMING = Object.freeze({
  connect: 15_000, // from dialling to connection.ok
  token: 10_000, // for the token provider to answer
  ping: 22_000, // of silence before we ask; the relay speaks every 20 s by itself
  silence: 30_000, // of silence before the connection is given up
  probe: 5_000, // for an answer after waking up or going offline
  backoffBase: 500, // the first wait is random in [0, base]
  backoffMax: 20_000, // and no wait is longer than this (plus a close code's own minimum)
  stable: 10_000, // a connection this old makes the next wait start from the base again
  send: 30_000, // a send is answered, or rejected, within this
  command: 10_000, // a watch or a token refresh that was written is answered, or tried again, within this
  move: 60_000, // the longest time to move to another socket in, whatever the relay says
  refresh: 60_000, // a token is renewed at a random moment of the last minute (or half) of its life
});
/** setTimeout takes no more than this; it is also how often we look at a token that lives longer. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Bounds. `pending`: unanswered sends; `seen`: event ids remembered per call. */
const LIMITS = Object.freeze({ pending: 256, calls: 1000, seen: 2048, frameBytes: 60 * 1024 });
/** Commands a socket may write: a little below the relay's own limit (burst 100, then 20/s). */
const PACE = Object.freeze({ burst: 80, perSecond: 16 });

/** What to do at each close code; `floor` is the shortest wait in ms. Anything else: retry. */
const CLOSE_CODES = Object.freeze({
  1001: { action: "retry", floor: 0, reason: "the relay was shut down" },
  1006: { action: "retry", floor: 0, reason: "the connection was cut" },
  1011: { action: "retry", floor: 500, reason: "the relay had an internal error" },
  1012: { action: "retry", floor: 0, reason: "the relay is restarting" },
  1013: { action: "retry", floor: 500, reason: "the relay asks to try again later" },
  4001: { action: "token", floor: 0, reason: "the token expired" },
  4002: { action: "retry", floor: 0, reason: "the login came too late" },
  4003: { action: "retry", floor: 5_000, reason: "too many commands" },
  4004: { action: "stop", floor: 0, reason: "the relay refused the connection" },
});
const TOKEN_EXPIRED = 40;
/** Why there was no handshake. A browser tells its page no more than that; unless it worked before. */
const NOT_REACHED = "the relay cannot be reached, or does not allow this page";
const NOT_REACHED_AGAIN = "the relay cannot be reached";

/**
 * Every error of this client.
 *
 * `code` is the relay's number (40 token expired, 17 not allowed, 22 too big, 9 rate limited, …)
 * or one of this client's words (`timeout`, `queue_full`, `disconnected`, `closed`, `bad_input`, `network`).
 * `status` is the HTTP status that belongs to it, 0 when there is none. A rejected `send` also
 * has `eventId`, and `outcome`: `unsent`, `refused`, or `unknown` (it may have been published;
 * sending again with the same `eventId` cannot publish it twice).
 */
export class RelayError extends Error {
  constructor(message, { code, status = 0, ...facts }) {
    super(message);
    this.name = "RelayError";
    this.code = code;
    this.status = status;
    Object.assign(this, facts);
  }

  /** From the six-key error body of an HTTP answer or an error frame. */
  static from(body, facts = {}) {
    return new RelayError(String(body?.message ?? "refused without a reason"), {
      code: body?.code ?? -1, status: body?.StatusCode ?? 0, ...facts,
    });
  }

  /** Whether the same request may succeed later, unchanged. */
  get temporary() {
    return this.code === 9 || this.status === 429 || this.status >= 500;
  }
}

/**
 * Return what to do after a close: `{action: "retry" | "token" | "stop", floor, reason}`.
 * `refusal` is the RelayError of a connection.error frame, when one came before the close.
 */
export function adviseClose(code, refusal = null) {
  const known = CLOSE_CODES[refusal ? 4004 : code];
  const advice = known ?? { action: "retry", floor: 0, reason: `closed with code ${code}` };
  if (!refusal) return advice;
  return { ...advice, reason: refusal.message, action: refusal.code === TOKEN_EXPIRED ? "token" : "stop" };
}

/** Return the wait in ms before try number `attempt` (from 0): full jitter under a doubling cap. */
export function retryDelay(attempt, random, { backoffBase, backoffMax } = TIMING, floor = 0) {
  return floor + random() * Math.min(backoffMax, backoffBase * 2 ** Math.min(attempt, 30));
}

/** Named listeners. One that throws, or whose promise rejects, is reported and disturbs nobody. */
class Emitter {
  #listeners = new Map();
  #report;

  constructor(report) {
    this.#report = report;
  }

  /** Call `fn` for every `name`; returns a function that ends it. */
  on(name, fn) {
    if (typeof fn !== "function") throw new TypeError("a listener must be a function");
    const entry = { fn }; // the same function may listen twice
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(entry);
    return () => void this.#listeners.get(name)?.delete(entry);
  }

  /** @internal */
  _emit(name, ...args) {
    for (const { fn } of [...(this.#listeners.get(name) ?? [])]) {
      try {
        const result = fn(...args);
        if (typeof result?.then === "function") result.then(undefined, this.#report);
      } catch (error) {
        this.#report(error);
      }
    }
  }
}

/** The values of the last `limit` keys. */
class Recent {
  #values = new Map();

  constructor(limit) {
    this.limit = limit;
  }

  /** Remember `value` under `key`; return the one remembered before, or undefined. */
  swap(key, value) {
    const before = this.#values.get(key);
    this.#values.set(key, value);
    if (this.#values.size > this.limit) this.#values.delete(this.#values.keys().next().value);
    return before;
  }
}

/** Names that `Call.on` gives a meaning; an event type that is spelt like one is only an `event`. */
const OWN_NAMES = new Set(["event", "watching", "watchers", "gap", "position", "recovered", "error"]);

/**
 * One watched call. Made by `relay.watch(cid)`.
 *
 * Listeners (`call.on(name, fn)`, returns a function that ends it):
 * - `event` and any event type, e.g. `custom`: `(event, {missed})`; `missed` marks what happened
 *   while we were away and was delivered afterwards.
 * - `watchers`: `({count, users})`, at most 50 users.
 * - `gap`: `({from, to})`: something between these positions is lost for good; live goes on.
 * - `recovered`: `({count, from, to})`: after a reconnect, all that was missed has been delivered.
 * - `position`: `({epoch, offset})`, after the event's listeners: store it, give it as `since`.
 * - `watching`: `({epoch, offset, recovered})`; `error`: the relay refused the watch.
 */
export class Call extends Emitter {
  #relay;
  #recent = new Recent(LIMITS.seen);
  #replay = null; // {from, top, count} between call.watching and the last missed event
  cid;
  /** `pending` (not yet, or not any more, on this connection), `watching`, `refused`, `ended`. */
  state = "pending";
  /** The last position delivered, or null. */
  position = null;
  /** The last known watchers. */
  watchers = { count: 0, users: [] };
  /** @internal The line on which the watch was last answered; null after the connection was cut. */
  _line = null;
  /** @internal The id of the question that is to be answered: one at a time, on one line. */
  _asked = null;

  /** @internal */
  constructor(relay, cid, since, report) {
    super(report);
    this.#relay = relay;
    this.cid = cid;
    this.position = since ? { epoch: since.epoch, offset: since.offset } : null;
  }

  /** Send a custom event to this call; see `Relay.send`. */
  send(custom, options) {
    return this.#relay.send(this.cid, custom, options);
  }

  /** Stop receiving. This object ends; watch the call again for a new one. */
  unwatch() {
    this.#relay._unwatch(this);
  }

  /** @internal The connection went away: what comes next starts with another call.watching. */
  _pause() {
    if (this.state === "watching") this.state = "pending";
    this.#replay = null;
    this._line = null;
  }

  /**
   * @internal The line it had moved to went away, the one before never did: its answer fills what we
   * did not hear. It comes on another line than the last one, as in every move.
   */
  _handBack() {
    this.state = "pending";
  }

  /** @internal The relay answered call.watching on `line`: from now on the call listens to no other. */
  _watching({ epoch, offset, recovered }, line) {
    const from = this.position;
    const top = { epoch, offset };
    const moved = this._line !== null && this._line !== line;
    this._line = line;
    this.state = "watching";
    // We were never away: what the first socket did not deliver any more follows as if it had.
    if (moved && recovered === true) return this.#renamed(top);
    this._emit("watching", { ...top, recovered });
    if (from === null || recovered !== true) this.#moveTo(top);
    if (from === null) return;
    this.#replay = null;
    if (recovered !== true) return this._emit("gap", { from, to: top });
    // The position must not run ahead of what was delivered: a second cut would lose the rest.
    this.#replay = { from, top, count: 0 };
    if (offset <= from.offset) this.#finishReplay();
  }

  /** @internal The relay could not fill a gap on the live connection (call.position). */
  _moved({ epoch, offset, recovered }) {
    const from = this.position;
    this.#replay = null;
    this.#moveTo({ epoch, offset });
    if (recovered === false) this._emit("gap", { from, to: this.position });
  }

  /** @internal An event of this call. Returns false when it was a repeat. */
  _event(event) {
    if (this.state !== "watching") return false; // before the answer to our watch: not ours yet
    const kept = event.offset !== undefined;
    if (kept && event.epoch === this.position?.epoch && event.offset <= this.position.offset) return false;
    const isNew = !this.#isRepeat(event, kept);
    const missed = kept && this.#replay !== null;
    const lost = kept && event.epoch === this.position?.epoch && event.offset > this.position.offset + 1;
    if (lost) this._emit("gap", { from: this.position, to: { epoch: event.epoch, offset: event.offset - 1 } });
    if (isNew) this.#deliver(event, { missed });
    if (kept && (isNew || event.offset > this.position.offset)) this.#advance(event, missed && isNew);
    return isNew;
  }

  /**
   * An event_id belongs to its sender, who is not always named (a webhook), and not by the user alone
   * (a server publishes for users). Two events with the same id are therefore told apart by their
   * offsets in one epoch; across epochs, and of volatile ones, the id is all there is.
   */
  #isRepeat(event, kept) {
    if (event.event_id === undefined) return false;
    const key = `${kept}\n${event.user?.id ?? event.type}\n${event.event_id}`;
    const before = this.#recent.swap(key, { epoch: event.epoch, offset: event.offset });
    if (before === undefined) return false;
    return !kept || before.epoch !== event.epoch || before.offset === event.offset;
  }

  #deliver(event, meta) {
    this._emit("event", event, meta);
    if (!OWN_NAMES.has(event.type)) this._emit(event.type, event, meta);
  }

  #advance({ epoch, offset }, counts) {
    this.#moveTo({ epoch, offset });
    if (this.#replay === null) return;
    if (counts) this.#replay.count += 1;
    if (offset >= this.#replay.top.offset) this.#finishReplay();
  }

  #finishReplay() {
    const { from, top, count } = this.#replay;
    this.#replay = null;
    this.#renamed(top);
    this._emit("recovered", { count, from, to: top });
  }

  /** Nothing is missing up to here: the relay's name for this place is the one that stays valid longest. */
  #renamed(top) {
    if (top.offset === this.position.offset && top.epoch !== this.position.epoch) this.#moveTo(top);
  }

  #moveTo(position) {
    this.position = position;
    this._emit("position", position);
  }
}

/** Who waits for an answer that concerns nobody (any more). */
const NOBODY = { ok() {}, failed() {}, late() {}, cut() {} };

/** A random id for an event. `crypto.randomUUID` is missing on plain-http pages; this is not. */
export function newEventId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** An error listener's exception belongs in the console, not in the client. */
function reportListenerError(error) {
  if (typeof globalThis.reportError === "function") globalThis.reportError(error);
  else console.error(error);
}

const systemClock = {
  now: () => Date.now(),
  setTimeout: (fn, ms) => globalThis.setTimeout(fn, ms),
  clearTimeout: (handle) => globalThis.clearTimeout(handle),
};

/** One socket: what it has heard, and what waits to be written at the pace the relay allows. */
class Line {
  static #made = 0;
  number = (Line.#made += 1); // names its timers
  queue = [];
  watches = []; // the questions for calls: there may be many, and they take turns with the queue
  turn = false; // whether the next one is of the queue
  allowance = { left: 0, at: 0 };
  heard = 0; // when the last frame came
  answered = false; // whether one came since the last probe
  reached = false; // there was a handshake
  ready = false; // and a login
  token = null; // the one the relay judged

  constructor(socket) {
    this.socket = socket;
  }
}

/** When a JWT expires, in ms since the epoch; Infinity when it does not, or cannot be read. */
export function tokenExpiry(token) {
  try {
    const payload = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const { exp } = JSON.parse(globalThis.atob(payload));
    return typeof exp === "number" ? exp * 1000 : Infinity;
  } catch {
    return Infinity;
  }
}

/** `http(s)://host/prefix/` → the same without the slash, or a RelayError. */
function cleanBase(url) {
  const base = String(url ?? globalThis.location?.origin ?? "").replace(/\/+$/, "");
  if (!/^https?:\/\/./.test(base)) throw new RelayError(`not an http(s) URL: "${base}"`, { code: "bad_input" });
  return base;
}

/**
 * A connection to the relay, kept up until `close()`. It dials by itself.
 *
 * Options: `url` (http(s) base, default: the page's origin), `apiKey`, `user` ({id, name?, image?}),
 * and `token` (a JWT) or `tokenProvider` (`async () => token`, or `{token, user}` when the user
 * changes with it; asked at start without `token`, before it expires, and whenever the relay says that
 * it has).
 * For Node: `WebSocket`. For tests: `timing`, `clock` ({now, setTimeout, clearTimeout}), `random`,
 * `newId`, `window`, `document`, `onListenerError`.
 *
 * Listeners (`relay.on(name, fn)`): `state` ({state, previous, reason, closeCode, error, attempt,
 * retryIn, retryAt}; the last two in ms, when waiting), `event` (every event of every call, repeats
 * dropped, and events about no call), `error` (an error frame that answers nothing we asked),
 * `moved` ({connectionId}: the relay's process stopped and another one serves us; `state` was `open` all
 * the time. Nothing was missed; of very many calls, those for which the time was too short go on as
 * after a reconnect).
 */
export class Relay extends Emitter {
  #options;
  #base;
  #timing;
  #clock;
  #token;
  #line = null; // the socket in use
  #move = null; // {deadline, tries, line, left, welcome} on the way to another one
  #old = null; // the one left behind, until it has answered what was sent on it
  #skew = 0; // the relay's clock minus ours
  #dialledAt = 0;
  #hasBeenOpen = false; // since it was made
  #round = 0; // counts dials; what an older one still awaits is dropped
  #attempt = 0; // failures since the last stable connection
  #refusal = null; // from a connection.error frame, until the close that follows it
  #calls = new Map(); // cid → Call
  #sends = new Map(); // command id → unanswered send
  #asked = new Map(); // command id → what to do with the answer, and the line it was asked on
  #timers = new Map();
  #commandId = 0;
  #stopListening = [];

  /** `connecting`, `open`, `waiting` (for the next try) or `closed` (by you, or refused). */
  state = "connecting";
  /** The user as the relay knows us, once connected; before that, as given. */
  user;
  connectionId = null;

  constructor(options) {
    const { apiKey, token, tokenProvider, WebSocket = globalThis.WebSocket, random = Math.random, newId = newEventId } = options;
    super(options.onListenerError ?? reportListenerError);
    if (!apiKey) throw new RelayError("apiKey is missing", { code: "bad_input" });
    if (!token && !tokenProvider) throw new RelayError("give a token or a tokenProvider", { code: "bad_input" });
    if (!WebSocket) throw new RelayError("no WebSocket here: give the class of the ws package", { code: "bad_input" });
    this.#options = { ...options, WebSocket, random, newId };
    this.#base = cleanBase(options.url);
    this.#timing = { ...TIMING, ...options.timing };
    this.#clock = options.clock ?? systemClock;
    this.#token = token ?? null;
    this.user = options.user ?? null;
    this.#listenToThePage();
    queueMicrotask(() => this.#round === 0 && this.state === "connecting" && this.#dial());
  }

  /**
   * Log in as a guest: `{user, token}` for `new Relay`. The relay may change the user's id.
   * Throws RelayError: the relay's refusal, or `network` / `timeout`.
   */
  static async guest({ url, apiKey, user, fetch = globalThis.fetch, timeout = TIMING.token }) {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), timeout);
    try {
      const answer = await fetch(`${cleanBase(url)}/video/guest?api_key=${encodeURIComponent(apiKey)}`, {
        method: "POST",
        headers: { "content-type": "application/json", "stream-auth-type": "anonymous" },
        body: JSON.stringify({ user }),
        signal: abort.signal,
      });
      const body = await answer.json().catch(() => null); // a proxy's error page is not JSON
      if (!answer.ok || !body) throw RelayError.from({ message: `HTTP ${answer.status}`, StatusCode: answer.status, ...body });
      return { user: body.user, token: body.access_token };
    } catch (error) {
      if (error instanceof RelayError) throw error;
      const late = abort.signal.aborted;
      const message = late ? "the relay did not answer in time" : "the relay cannot be reached";
      throw new RelayError(message, { code: late ? "timeout" : "network", cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Sends without an answer so far. */
  get pending() {
    return this.#sends.size;
  }

  /** Dial now: instead of waiting, or again after `closed`. Does nothing while connected. */
  connect() {
    if (this.state === "open" || (this.state === "connecting" && this.#round > 0)) return;
    if (this.state === "closed") {
      this.#attempt = 0;
      this.#listenToThePage();
    }
    this.#dial();
  }

  /** Close for good (until `connect()`). Unanswered sends are rejected, calls stay for a later `connect()`. */
  close() {
    this.#stop(new RelayError("closed by this client", { code: "closed" }));
  }

  /**
   * Use `token` from now on. On an open connection the promise ends with the relay's answer;
   * otherwise the token serves the next dial, which follows at once if the old one was refused.
   */
  refreshToken(token) {
    const before = this.#token;
    this.#token = token;
    if (this.state !== "open") {
      this.connect();
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const line = this.#line;
      const ok = () => {
        line.token = token;
        this.#watchExpiry();
        resolve();
      };
      const failed = (error) => {
        if (this.#token === token) this.#token = before; // or the next dial would be refused with it
        reject(error);
      };
      const late = () => failed(new RelayError("the relay did not answer in time", { code: "timeout" }));
      this.#ask({ type: "token.refresh", token }, { ok, failed, late, cut: resolve });
    });
  }

  /**
   * Watch a call. `since` ({epoch, offset}, from an earlier `position`) asks for what came after it.
   * Watching the same call twice gives the same Call. Throws RelayError `queue_full` beyond 1 000 calls.
   */
  watch(cid, { since } = {}) {
    const known = this.#calls.get(cid);
    if (known) return known;
    if (this.#calls.size >= LIMITS.calls) throw new RelayError("too many calls", { code: "queue_full" });
    const call = new Call(this, cid, since, this.#options.onListenerError ?? reportListenerError);
    this.#calls.set(cid, call);
    if (this.#move?.line?.ready) this.#moveCall(call);
    else if (this.state === "open") this.#askToWatch(call);
    return call;
  }

  /** @internal */
  _unwatch(call) {
    if (this.#calls.get(call.cid) !== call) return;
    this.#calls.delete(call.cid);
    this.#disarm(`watch ${call.cid}`);
    this.#unask(call);
    if (this.state === "open" && call.state !== "refused") {
      for (const line of [this.#line, this.#move?.line]) {
        if (line?.ready) this.#write({ type: "call.unwatch", id: ++this.#commandId, call_cid: call.cid }, line);
      }
    }
    call.state = "ended";
    this.#hasMoved(call);
  }

  /**
   * Send a custom event; resolves with {event_id, epoch, offset} once it is published (no position
   * when `volatile`). It waits for a connection; if the answer is lost it is repeated under the same
   * `eventId` (default: a random one), so it is published once. A volatile event is never repeated.
   * Rejects with RelayError: refused by the relay, `timeout`, `queue_full`, `disconnected`, `closed`, `bad_input`.
   */
  send(cid, custom, { volatile = false, eventId = this.#options.newId() } = {}) {
    const fail = (message, code) => Promise.reject(new RelayError(message, { code, eventId, outcome: "unsent" }));
    if (this.state === "closed") return fail("the connection is closed", "closed");
    if (this.#sends.size >= LIMITS.pending) return fail(`${LIMITS.pending} events wait already`, "queue_full");
    const id = ++this.#commandId;
    let text;
    try {
      text = JSON.stringify({ type: "call.send", id, call_cid: cid, custom, volatile, event_id: eventId });
    } catch {
      return fail("custom is not JSON", "bad_input");
    }
    // A frame too big would cost us the connection; the finer limit on custom is the relay's to judge.
    if (new TextEncoder().encode(text).length > LIMITS.frameBytes) return fail("the event is too big", "bad_input");
    return new Promise((resolve, reject) => {
      const entry = { id, text, eventId, volatile, resolve, reject, sent: false, tries: 0 };
      const late = () => this.#rejectSend(entry, "no answer in time", "timeout");
      entry.deadline = this.#clock.setTimeout(late, this.#timing.send);
      this.#sends.set(id, entry);
      if (this.state === "open" && this.#old === null) this.#write(entry); // else after those before it
    });
  }

  // --- dialling -------------------------------------------------------------------------------

  async #dial() {
    const round = ++this.#round;
    this.#disarm("retry");
    this.#dialledAt = this.#clock.now();
    this.#setState("connecting");
    if (this.#options.tokenProvider && this.#token && this.#expiresIn() <= 0) this.#token = null; // we slept
    try {
      await this.#needToken();
    } catch (error) {
      if (round === this.#round) this.#lost({ reason: "no token", error });
      return;
    }
    if (round === this.#round) this.#openSocket();
  }

  async #needToken() {
    if (this.#token) return;
    const { token, user } = await this.#askProvider();
    if (this.#token) return; // refreshToken() was faster
    this.#token = token;
    if (user) this.user = user;
  }

  /** What the token provider gives, as {token, user?}; it has a limited time. */
  async #askProvider() {
    const late = new RelayError("the token provider did not answer in time", { code: "timeout" });
    let timer;
    const grant = await new Promise((resolve, reject) => {
      timer = this.#clock.setTimeout(() => reject(late), this.#timing.token);
      Promise.resolve().then(() => this.#options.tokenProvider()).then(resolve, reject);
    }).finally(() => this.#clock.clearTimeout(timer));
    const { token, user } = typeof grant === "string" ? { token: grant } : grant ?? {};
    if (!token) throw new RelayError("the token provider gave no token", { code: "bad_input" });
    return { token, user };
  }

  #openSocket() {
    this.#leave(this.#line);
    try {
      this.#line = this.#openLine();
    } catch (error) {
      return this.#lost({ reason: "the browser refuses this address", error });
    }
    this.#arm("connect", this.#timing.connect, () => this.#lost({ reason: "the relay did not answer in time" }));
  }

  #openLine() {
    const query = new URLSearchParams({ api_key: this.#options.apiKey, "stream-auth-type": "jwt" });
    const socket = new this.#options.WebSocket(`${this.#base.replace(/^http/, "ws")}/video/connect?${query}`);
    const line = new Line(socket);
    socket.onopen = () => {
      line.reached = true;
      this.#login(line);
    };
    socket.onmessage = ({ data }) => this.#receive(data, line);
    socket.onclose = ({ code }) => this.#lineClosed(code, line);
    socket.onerror = () => {}; // the close that follows says all there is
    return line;
  }

  #login(line) {
    const { id, name, image, custom } = this.user ?? {};
    line.token = this.#token;
    this.#sendNow({ token: this.#token, products: ["video"], user_details: { id, name, image, custom } }, line);
  }

  /** The login was accepted: the line may be written to. */
  #ready(line, { created_at: createdAt }) {
    const now = this.#clock.now();
    line.ready = true;
    line.allowance = { left: PACE.burst, at: now };
    this.#skew = (Date.parse(createdAt) || now) - now;
  }

  #opened(welcome) {
    this.#disarm("connect");
    this.#ready(this.#line, welcome);
    this.#hasBeenOpen = true;
    this.#settleIn(welcome);
    this.#watchSilence();
    const calls = [...this.#calls.values()].filter((call) => call.state === "pending");
    const sends = [...this.#sends.values()];
    this.#setState("open"); // what its listeners watch and send is asked by itself
    if (this.state !== "open") return;
    calls.forEach((call) => this.#askToWatch(call));
    sends.forEach((entry) => this.#write(entry));
  }

  /** Whoever was welcomed on `#line` stays for a while, we hope. */
  #settleIn({ connection_id: connectionId, me }) {
    this.connectionId = connectionId;
    if (me) this.user = me;
    this.#arm("stable", this.#timing.stable, () => (this.#attempt = 0));
    this.#watchExpiry();
  }

  #lineClosed(code, line) {
    if (line === this.#old) return this.#retire();
    if (line === this.#move?.line) return this.#moveFailed();
    if (this.#move?.line?.ready) return this.#adopt(); // it ended before every call had moved
    this.#closed(code, line);
  }

  #closed(code, { reached, token }) {
    const advice = adviseClose(code, this.#refusal);
    const reason = reached ? advice.reason : this.#hasBeenOpen ? NOT_REACHED_AGAIN : NOT_REACHED;
    const expired = advice.action === "token";
    if (expired && this.#token === token) this.#token = null;
    const renewable = expired && (this.#token ?? this.#options.tokenProvider);
    if (advice.action === "retry" || renewable) return this.#lost({ ...advice, reason, closeCode: code });
    const failure = this.#refusal ?? new RelayError(reason, { code: code === 4001 ? TOKEN_EXPIRED : "closed" });
    this.#stop(Object.assign(failure, { closeCode: code }));
  }

  /** The connection, or the try, is over: clean up and wait for the next. */
  #lost({ reason, closeCode = null, error = this.#refusal, floor = 0 }) {
    this.#tearDown();
    const delay = retryDelay(this.#attempt, this.#options.random, this.#timing, floor);
    this.#attempt += 1;
    this.#arm("retry", delay, () => this.#dial());
    this.#setState("waiting", { reason, closeCode, error, retryIn: delay, retryAt: this.#clock.now() + delay });
  }

  #stop(error) {
    if (this.state === "closed") return;
    this.#round += 1;
    this.#tearDown();
    this.#stopListening.splice(0).forEach((stop) => stop());
    this.#setState("closed", { reason: error.message, closeCode: error.closeCode ?? null, error });
    for (const entry of [...this.#sends.values()]) this.#rejectSend(entry, error.message, error.code, error.status);
  }

  /** Leave nothing of this connection behind but the calls and the sends that may be repeated. */
  #tearDown() {
    for (const name of [...this.#timers.keys()]) this.#disarm(name);
    for (const line of [this.#line, this.#move?.line, this.#old]) this.#leave(line);
    this.#line = this.#move = this.#old = null;
    this.#refusal = null;
    this.connectionId = null;
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    asked.forEach(({ cut }) => cut?.());
    for (const call of this.#calls.values()) call._pause();
    for (const entry of [...this.#sends.values()]) {
      if (entry.volatile && entry.sent) this.#rejectSend(entry, "the connection was cut before the answer", "disconnected");
      this.#clock.clearTimeout(entry.again);
    }
  }

  #leave(line) {
    if (!line) return;
    const { socket } = line;
    this.#disarm(`pump ${line.number}`);
    socket.onopen = socket.onmessage = socket.onclose = null; // a late frame of it is nobody's
    try {
      socket.close();
    } catch {
      // It was never open; nothing to close.
    }
  }

  // --- moving to another socket before this one ends ------------------------------------------

  /** The relay's process stops in `within` ms. Not everyone at once: it told others too. */
  #startMove(within) {
    if (this.#move || this.#old) return;
    const time = Math.min(Math.max(0, Number(within) || 0), this.#timing.move);
    this.#move = { deadline: this.#clock.now() + time, tries: 0, line: null, left: new Set(), welcome: null };
    this.#arm("move", (this.#options.random() * time) / 2, () => this.#tryMove());
  }

  #tryMove() {
    const move = this.#move;
    try {
      move.line = this.#openLine();
    } catch {
      return this.#moveFailed();
    }
    // The first socket ends then; what the second has not answered yet, it answers by position.
    const over = () => (move.line.ready ? this.#adopt() : this.#moveFailed());
    this.#arm("move", Math.max(0, move.deadline - this.#clock.now()), over);
  }

  /** Welcome on the second socket: watch there what we watch here, from where we are. */
  #moveOpened(welcome) {
    const { line } = this.#move;
    this.#ready(line, welcome);
    this.#move.welcome = welcome;
    const calls = [...this.#calls.values()].filter(({ state }) => state === "watching" || state === "pending");
    this.#move.left = new Set();
    calls.forEach((call) => this.#moveCall(call));
    if (calls.length === 0) this.#adopt();
  }

  /** Watch a call on the second socket. Until it answers the first one delivers, if it did before. */
  #moveCall(call) {
    this.#move.left.add(call);
    this.#askToWatch(call, 0, this.#move.line);
  }

  /** One call less that the second socket does not deliver. */
  #hasMoved(call) {
    if (this.#move?.left.delete(call) && this.#move.left.size === 0) this.#adopt();
  }

  /** There is no second socket, for now: again while there is time, else this one's end is like any other. */
  #moveFailed() {
    const move = this.#move;
    const { line } = move;
    move.line = null;
    move.left.clear();
    this.#leave(line);
    this.#forgetAsked(line);
    for (const call of this.#calls.values()) {
      if (line !== null && call._line === line) call._handBack();
      if (call.state === "pending" && !this.#isAskedFor(call)) this.#askToWatch(call);
    }
    const wait = retryDelay(move.tries, this.#options.random, this.#timing);
    move.tries += 1;
    if (this.#clock.now() + wait < move.deadline) this.#arm("move", wait, () => this.#tryMove());
    else this.#disarm("move");
  }

  /** The second socket is the one in use from now on. */
  #adopt() {
    const { line, welcome, deadline } = this.#move;
    const old = this.#line;
    this.#disarm("move");
    this.#move = null;
    this.#old = old;
    this.#line = line;
    for (const call of this.#calls.values()) if (call._line !== line) call._pause(); // its answer is on the way
    this.#settleIn(welcome);
    if (line.token !== this.#token) this.#ask({ type: "token.refresh", token: this.#token }, NOBODY);
    const rest = Math.min(this.#timing.probe, Math.max(0, deadline - this.#clock.now()));
    this.#arm("retire", rest, () => this.#retire());
    if (old.socket.readyState > 1) this.#retire();
    else this.#retireWhenAnswered();
    this._emit("moved", { connectionId: this.connectionId });
  }

  #retireWhenAnswered() {
    if (this.#old && ![...this.#sends.values()].some(({ line, sent }) => sent && line === this.#old)) this.#retire();
  }

  /** Leave the first socket; what it did not answer is sent again, before what waited for that. */
  #retire() {
    const old = this.#old;
    this.#disarm("retire");
    this.#old = null;
    this.#leave(old);
    this.#forgetAsked(old);
    for (const entry of [...this.#sends.values()]) {
      if (entry.line === this.#line) continue;
      this.#clock.clearTimeout(entry.again);
      if (entry.volatile && entry.sent) this.#rejectSend(entry, "the connection was cut before the answer", "disconnected");
      else this.#write(entry);
    }
  }

  #forgetAsked(line) {
    for (const [id, asked] of [...this.#asked]) {
      if (asked.line !== line) continue;
      this.#settle(id);
      asked.cut?.();
    }
  }

  // --- the token ------------------------------------------------------------------------------

  /** Milliseconds until the token expires by the relay's clock. */
  #expiresIn() {
    return tokenExpiry(this.#token) - this.#skew - this.#clock.now();
  }

  /** Renew the token a while before it expires; each client at a moment of its own. */
  #watchExpiry() {
    const rest = this.#expiresIn();
    if (!this.#options.tokenProvider || rest === Infinity) return this.#disarm("expiry");
    const early = (Math.min(this.#timing.refresh, rest / 2) * (1 + this.#options.random())) / 2;
    const wait = Math.max(0, rest - early);
    if (wait > LONGEST_TIMER) this.#arm("expiry", LONGEST_TIMER, () => this.#watchExpiry());
    else this.#arm("expiry", wait, () => this.#renew());
  }

  /** Ask the provider and tell the relay. What fails is tried again; in the end the relay closes with 4001. */
  async #renew(tries = 0) {
    const round = this.#round;
    const before = this.#token;
    try {
      const { token } = await this.#askProvider();
      if (round !== this.#round || this.state !== "open" || this.#token !== before) return;
      await this.refreshToken(token);
    } catch {
      if (round !== this.#round || this.state !== "open") return;
      const wait = retryDelay(tries + 1, this.#options.random, this.#timing, this.#timing.backoffBase);
      this.#arm("expiry", wait, () => this.#renew(tries + 1));
    }
  }

  #setState(state, facts = {}) {
    const previous = this.state;
    this.state = state;
    const none = { reason: null, closeCode: null, error: null, retryIn: null, retryAt: null };
    this._emit("state", { state, previous, attempt: this.#attempt, ...none, ...facts });
  }

  // --- frames in ------------------------------------------------------------------------------

  #receive(text, line) {
    line.heard = this.#clock.now();
    line.answered = true;
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return; // not ours to judge, and no reason to lose the connection
    }
    if (frame === null || typeof frame !== "object") return;
    const handle = this.#handlers[frame.type];
    if (handle) handle(frame, line);
    else this.#event(frame, line);
  }

  #handlers = Object.assign(Object.create(null), {
    "connection.ok": (frame, line) => {
      if (line === this.#move?.line) this.#moveOpened(frame);
      else if (this.state === "connecting") this.#opened(frame);
    },
    "connection.error": (frame, line) => {
      if (frame.call_cid !== undefined) return;
      if (line === this.#line) this.#refusal = RelayError.from(frame.error);
    },
    "connection.draining": (frame, line) => line === this.#line && line.ready && this.#startMove(frame.reconnect_within_ms),
    "health.check": () => {},
    "call.watching": (frame) => this.#answer(frame),
    "call.unwatched": () => {},
    "call.sent": (frame) => this.#sentAnswer(frame),
    "call.position": (frame, line) => this.#callOn(frame, line)?._moved(frame),
    "call.watchers": (frame, line) => this.#watchersChanged(frame, line),
    "token.refreshed": (frame) => this.#answer(frame),
    error: (frame) => this.#refused(frame),
  });

  /** The call a frame is about, unless another line tells about that call. */
  #callOn({ call_cid: cid }, line) {
    const call = this.#calls.get(cid);
    return call?._line === line ? call : undefined;
  }

  #event(event, line) {
    if (typeof event.type !== "string") return;
    const isOurs = event.call_cid === undefined ? line === this.#line : this.#callOn(event, line)?._event(event);
    if (isOurs) this._emit("event", event);
  }

  #watchersChanged(frame, line) {
    const call = this.#callOn(frame, line);
    if (!call) return;
    call.watchers = { count: frame.count, users: Array.isArray(frame.users) ? frame.users : [] };
    call._emit("watchers", call.watchers);
  }

  #answer(frame) {
    const asked = this.#asked.get(frame.id);
    this.#settle(frame.id);
    asked?.ok(frame);
  }

  #sentAnswer({ id, event_id, epoch, offset }) {
    const entry = this.#sends.get(id);
    if (!entry) return;
    this.#forgetSend(entry);
    entry.resolve({ event_id, epoch, offset });
  }

  #refused(frame) {
    const error = RelayError.from(frame.error);
    const entry = this.#sends.get(frame.id);
    const asked = this.#asked.get(frame.id);
    this.#settle(frame.id);
    if (entry) this.#sendRefused(entry, error);
    else if (asked) asked.failed(error);
    else this._emit("error", error);
  }

  // --- frames out -----------------------------------------------------------------------------

  /** Send a command and return its id; `then` = {ok, failed, late, cut}: at most one is called. */
  #ask(command, then, line = this.#line) {
    const id = ++this.#commandId;
    const asked = { ...then, id, command, line, written: false };
    this.#asked.set(id, asked);
    this.#write(asked, line);
    return id;
  }

  /** Return the frame of a question. Its time begins now: with many calls the pace alone takes longer. */
  #begin(asked) {
    asked.written = true;
    this.#arm(`ask ${asked.id}`, this.#timing.command, () => {
      this.#settle(asked.id);
      asked.late();
    });
    return { ...asked.command, id: asked.id };
  }

  #settle(id) {
    this.#asked.delete(id);
    this.#disarm(`ask ${id}`);
  }

  /** What a call was asked is nobody's question from now on: its answer changes nothing. */
  #unask({ _asked: id }) {
    const asked = this.#asked.get(id);
    if (asked?.written) Object.assign(asked, NOBODY);
    else this.#settle(id); // and it never will be
  }

  /** Ask for a call on one line, instead of what was asked before. */
  #askToWatch(call, tries = 0, line = this.#line) {
    if (this.#calls.get(call.cid) !== call) return;
    this.#disarm(`watch ${call.cid}`);
    this.#unask(call);
    const wait = retryDelay(tries + 1, this.#options.random, this.#timing);
    const again = () => {
      if (line === this.#move?.line) this.#moveFailed();
      else this.#arm(`watch ${call.cid}`, wait, () => this.#askToWatch(call, tries + 1));
    };
    const refused = (error) => {
      this.#watchRefused(call, error);
      this.#hasMoved(call);
    };
    const command = {
      type: "call.watch",
      call_cid: call.cid,
      get since() { // when it is written: until then another line may have delivered
        return call.position ?? undefined;
      },
    };
    call._asked = this.#ask(command, {
      ok: (frame) => this.#watchAnswered(call, frame, line),
      failed: (error) => (error.temporary ? again() : refused(error)),
      late: again,
    }, line);
  }

  /** Whether there is a question for it, or a time at which it is asked again. */
  #isAskedFor(call) {
    return this.#asked.has(call._asked) || this.#timers.has(`watch ${call.cid}`);
  }

  #watchAnswered(call, frame, line) {
    if (this.#calls.get(call.cid) !== call) return;
    call._watching(frame, line);
    this.#hasMoved(call);
  }

  #watchRefused(call, error) {
    if (this.#calls.get(call.cid) !== call) return;
    call.state = "refused";
    call._emit("error", error);
  }

  /** What is temporary is tried again under the same event_id until the deadline. */
  #sendRefused(entry, error) {
    if (!error.temporary) {
      this.#forgetSend(entry);
      return entry.reject(Object.assign(error, { eventId: entry.eventId, outcome: "refused" }));
    }
    entry.tries += 1;
    entry.again = this.#clock.setTimeout(
      () => this.state === "open" && this.#write(entry),
      retryDelay(entry.tries, this.#options.random, this.#timing),
    );
  }

  #rejectSend(entry, message, code, status = 0) {
    this.#forgetSend(entry);
    entry.reject(new RelayError(message, { code, status, eventId: entry.eventId, outcome: entry.sent ? "unknown" : "unsent" }));
  }

  #forgetSend(entry) {
    this.#sends.delete(entry.id);
    this.#clock.clearTimeout(entry.deadline);
    this.#clock.clearTimeout(entry.again);
    this.#retireWhenAnswered();
  }

  /** Queue a frame, a question or a send (its entry) at the pace the relay allows. */
  #write(item, line = this.#line) {
    if ("deadline" in item) item.line = line;
    (item.command?.type === "call.watch" ? line.watches : line.queue).push(item);
    this.#pump(line);
  }

  #pump(line) {
    const now = this.#clock.now();
    const gained = (Math.max(0, now - line.allowance.at) / 1000) * PACE.perSecond;
    line.allowance = { left: Math.min(PACE.burst, line.allowance.left + gained), at: now };
    while (line.queue.length + line.watches.length > 0 && line.allowance.left >= 1) {
      line.turn = line.watches.length === 0 || (!line.turn && line.queue.length > 0);
      const frame = this.#take((line.turn ? line.queue : line.watches).shift());
      if (frame === null) continue;
      line.allowance.left -= 1;
      this.#sendNow(frame, line);
    }
    const wait = ((1 - line.allowance.left) / PACE.perSecond) * 1000;
    if (line.queue.length + line.watches.length > 0) this.#arm(`pump ${line.number}`, wait, () => this.#pump(line));
  }

  /** What to write for a queued item, from now on under way; null when nobody waits for its answer any more. */
  #take(item) {
    if ("command" in item) return this.#asked.has(item.id) ? this.#begin(item) : null;
    if (!("deadline" in item)) return item;
    if (!this.#sends.has(item.id)) return null; // its deadline passed
    item.sent = true;
    return item.text;
  }

  #sendNow(frame, line = this.#line) {
    try {
      line?.socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
    } catch {
      // The socket is closing; its close event does the rest.
    }
  }

  // --- is it still alive? ---------------------------------------------------------------------

  /** Ask after a while of silence, give up after a longer one. One timer, however busy the socket. */
  #watchSilence() {
    const { ping, silence } = this.#timing;
    const quiet = Math.max(0, this.#clock.now() - this.#line.heard);
    if (quiet >= silence) return this.#lost({ reason: `nothing heard for ${Math.round(silence / 1000)} s` });
    if (quiet >= ping) this.#sendNow({ type: "health.check" });
    this.#arm("silence", (quiet >= ping ? silence : ping) - quiet, () => this.#watchSilence());
  }

  /** Ask now, and do not wait long for the answer. */
  #probe() {
    const line = this.#line;
    line.answered = false;
    this.#sendNow({ type: "health.check" });
    this.#arm("probe", this.#timing.probe, () => {
      if (line === this.#line && !line.answered) this.#lost({ reason: "no answer after waking up" });
    });
  }

  /** A device that slept or changed networks knows before any timer does. */
  #listenToThePage() {
    const { window = globalThis, document = globalThis.document } = this.#options;
    const awake = () => {
      // A try that began before we slept may never end; one that has just begun is given its time.
      const hangs = this.state === "connecting" && this.#clock.now() - this.#dialledAt >= this.#timing.probe;
      if (this.state === "waiting" || hangs) this.#dial();
      else if (this.state === "open") this.#probe();
    };
    const visible = () => document.visibilityState === "visible" && awake();
    const listen = (target, name, fn) => {
      if (typeof target?.addEventListener !== "function") return;
      target.addEventListener(name, fn);
      this.#stopListening.push(() => target.removeEventListener(name, fn));
    };
    listen(window, "online", awake);
    listen(window, "offline", () => this.state === "open" && this.#probe());
    listen(window, "pageshow", ({ persisted }) => persisted && awake()); // back from the page cache
    listen(document, "visibilitychange", visible);
    listen(document, "resume", awake); // a tab that was frozen
  }

  #arm(name, ms, fn) {
    this.#disarm(name);
    this.#timers.set(name, this.#clock.setTimeout(() => {
      this.#timers.delete(name);
      fn();
    }, ms));
  }

  #disarm(name) {
    this.#clock.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }
}
