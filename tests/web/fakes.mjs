/** A clock, a socket and a page that do only what a test tells them to. No waiting, no network. */
import { Relay } from "../../web/relay.js";

/** Timers that fire when `advance` passes them, in order. */
export class FakeClock {
  #now = 1_000_000;
  #timers = new Map();
  #next = 1;

  now = () => this.#now;
  setTimeout = (fn, ms) => {
    const handle = this.#next++;
    this.#timers.set(handle, { at: this.#now + ms, fn });
    return handle;
  };
  clearTimeout = (handle) => void this.#timers.delete(handle);

  /** Sleep as a device does: the clock moves on, and no timer fires meanwhile. */
  jump(ms) {
    this.#now += ms;
  }

  get armed() {
    return this.#timers.size;
  }

  /** Move on by `ms`, running what is due and the promises that follow from it. */
  async advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, { at }]) => at <= end).sort(([a, x], [b, y]) => x.at - y.at || a - b)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].fn();
      await settle();
    }
    this.#now = end;
    await settle();
  }
}

/** Let every promise that can go on go on. */
export async function settle() {
  for (let i = 0; i < 20; i += 1) await null;
}

/** The relay's side of a socket: what it received, and what it says. */
export class FakeSocket {
  received = [];
  readyState = 1;

  constructor(url) {
    this.url = url;
  }

  get closed() {
    return this.readyState > 1;
  }

  send(text) {
    if (this.closed) throw new Error("closed");
    this.received.push(JSON.parse(text));
    this.onreceived?.(this.received.at(-1));
  }

  close() {
    this.readyState = 2;
  }

  say(frame) {
    this.onmessage?.({ data: typeof frame === "string" ? frame : JSON.stringify(frame) });
  }

  cut(code = 1006) {
    this.readyState = 3;
    this.onclose?.({ code });
  }

  of(type) {
    return this.received.filter((frame) => frame.type === type);
  }

  last(type) {
    return this.of(type).at(-1);
  }

  /** Finish the login. */
  accept() {
    this.onopen?.();
    this.say({ type: "connection.ok", connection_id: "c1", me: { id: "ada", name: "Ada" } });
  }

  /** Answer the last call.watch, or the last one of a call. */
  watching({ epoch = "e1", offset = 0, recovered, cid } = {}) {
    const { id, call_cid } = this.of("call.watch").filter((frame) => [frame.call_cid, undefined].includes(cid)).at(-1);
    this.say({ type: "call.watching", id, call_cid, epoch, offset, recovered });
  }

  event(offset, extra = {}) {
    this.say({
      type: "custom", call_cid: CID, created_at: "2026-01-01T00:00:00Z", custom: { n: offset },
      user: { id: "bob", name: "Bob" }, event_id: `id-${offset}`, epoch: "e1", offset, ...extra,
    });
  }

  sent(frame, position = { epoch: "e1", offset: 1 }) {
    this.say({ type: "call.sent", id: frame.id, call_cid: frame.call_cid, event_id: frame.event_id, ...position });
  }

  refuse(frame, code, status, message = "no") {
    this.say({ type: "error", id: frame.id, error: errorBody(code, status, message) });
  }
}

/** A relay with a history: it answers every watch on the sockets it serves, and tells them what is published. */
export class FakeRelay {
  #history = new Map(); // cid → events
  #served = new Map(); // socket → the cids it watches
  #deaf;

  /** `deaf`: the cid whose watch is never answered. */
  constructor({ deaf } = {}) {
    this.#deaf = deaf;
  }

  serve(socket) {
    this.#served.set(socket, new Set());
    socket.onreceived = (frame) => {
      if (frame.type === "call.watch") queueMicrotask(() => this.#watch(socket, frame));
      if (frame.type === "health.check") queueMicrotask(() => socket.say(frame));
    };
  }

  publish(cid) {
    const events = this.#of(cid);
    const offset = events.length + 1;
    const event = { type: "custom", call_cid: cid, event_id: `${cid}-${offset}`, epoch: "e1", offset };
    events.push(event);
    for (const [socket, cids] of this.#served) if (cids.has(cid) && !socket.closed) socket.say(event);
  }

  #of(cid) {
    if (!this.#history.has(cid)) this.#history.set(cid, []);
    return this.#history.get(cid);
  }

  #watch(socket, { id, call_cid: cid, since }) {
    if (socket.closed || cid === this.#deaf) return;
    const events = this.#of(cid);
    this.#served.get(socket).add(cid);
    socket.say({ type: "call.watching", id, call_cid: cid, epoch: "e1", offset: events.length, recovered: since && true });
    for (const event of since ? events.slice(since.offset) : []) socket.say(event);
  }
}

export const CID = "default:demo";

export function errorBody(code, status, message = "no") {
  return { code, message, StatusCode: status, duration: "0ms", more_info: "", details: [] };
}

/** Something with addEventListener, and `fire(name)`. */
export class FakeTarget extends EventTarget {
  visibilityState = "visible";
  fire(name) {
    this.dispatchEvent(new Event(name));
  }
}

/**
 * A Relay whose world is fake. `world.random` is the value Math.random would give; no socket can be
 * made while `world.broken`.
 * Returns {relay, clock, sockets, states, errors, window, document, world}.
 */
export function setUp(options = {}) {
  const clock = new FakeClock();
  const sockets = [];
  const states = [];
  const errors = [];
  const world = { random: 0.5, ids: 0, broken: false };
  const window = new FakeTarget();
  const document = new FakeTarget();
  class Socket extends FakeSocket {
    constructor(url) {
      super(url);
      if (world.broken) throw new Error("no socket can be made");
      sockets.push(this);
    }
  }
  const relay = new Relay({
    url: "http://relay.test", apiKey: "demo", user: { id: "ada", name: "Ada" },
    ...("tokenProvider" in options ? {} : { token: "t1" }),
    WebSocket: Socket, clock, window, document, random: () => world.random,
    newId: () => `new-${(world.ids += 1)}`, onListenerError: (error) => errors.push(error), ...options,
  });
  relay.on("state", (state) => states.push(state));
  return { relay, clock, sockets, states, errors, window, document, world };
}

/** The same, connected and watching CID from offset 0. */
export async function setUpWatching(options = {}) {
  const world = setUp(options);
  const call = world.relay.watch(CID);
  const seen = [];
  const gaps = [];
  const recovered = [];
  const moves = [];
  world.relay.on("moved", (facts) => moves.push(facts));
  call.on("event", (event, meta) => seen.push({ n: event.offset ?? event.custom.n, missed: meta.missed }));
  call.on("gap", (gap) => gaps.push(gap));
  call.on("recovered", (facts) => recovered.push(facts));
  await settle();
  world.sockets[0].accept();
  world.sockets[0].watching();
  return { ...world, call, seen, gaps, recovered, moves };
}

/** Cut the newest socket, wait for the retry, log in again; returns the new socket. */
export async function reconnect({ sockets, clock, states }, code = 1006) {
  sockets.at(-1).cut(code);
  await clock.advance(states.at(-1).retryIn);
  const socket = sockets.at(-1);
  socket.accept();
  return socket;
}

/** Log in on a second socket. */
export function welcome(socket, id = "c2") {
  socket.onopen?.();
  socket.say({ type: "connection.ok", connection_id: id, me: { id: "ada", name: "Ada" } });
}

/** How long a process that stops gives its sockets. */
export const WITHIN = 4_000;

/** A world that was told to move and has a second socket, which is not logged in yet. */
export async function moving(options = {}) {
  const world = await setUpWatching(options);
  const [first] = world.sockets;
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await world.clock.advance(WITHIN / 4); // random is 0.5
  return { ...world, first, second: world.sockets[1] };
}

/** The same, logged in on the second socket: the watch has been asked for there. */
export async function movingIn(options = {}) {
  const world = await moving(options);
  welcome(world.second);
  return world;
}

/** The same with a second call, `other`: only CID has moved, `asked` is the open question for the other one. */
export async function movedHalf() {
  const world = await setUpWatching();
  const [first] = world.sockets;
  const other = world.relay.watch("default:other");
  first.watching();
  first.say({ type: "connection.draining", reconnect_within_ms: WITHIN });
  await world.clock.advance(WITHIN / 4);
  const second = world.sockets[1];
  welcome(second);
  const [one, asked] = second.of("call.watch");
  second.say({ type: "call.watching", id: one.id, call_cid: CID, epoch: "e1", offset: 0, recovered: true });
  return { ...world, other, first, second, asked };
}
