/** The browser client: every promise of web/relay.js, on a fake clock and a fake socket. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { adviseClose, newEventId, Relay, RelayError, retryDelay, TIMING } from "../../web/relay.js";
import { CID, errorBody, reconnect, settle, setUp, setUpWatching } from "./fakes.mjs";

const names = (states) => states.map(({ state }) => state);

// --- connecting ---------------------------------------------------------------------------------

test("it dials by itself, logs in with the first frame and is open after connection.ok", async () => {
  const { relay, sockets, states } = setUp();
  assert.equal(relay.state, "connecting");
  await settle();
  assert.equal(sockets[0].url, "ws://relay.test/video/connect?api_key=demo&stream-auth-type=jwt");
  sockets[0].accept();
  assert.deepEqual(sockets[0].received[0], { token: "t1", products: ["video"], user_details: { id: "ada", name: "Ada" } });
  assert.deepEqual(names(states), ["connecting", "open"]);
  assert.equal(relay.connectionId, "c1");
});

test("a base with https, a path and a slash becomes the right socket address", async () => {
  const { sockets } = setUp({ url: "https://relay.test/events/" });
  await settle();
  assert.match(sockets[0].url, /^wss:\/\/relay\.test\/events\/video\/connect\?/);
});

test("what is missing is said at construction", () => {
  const options = { url: "http://relay.test", apiKey: "demo", token: "t", WebSocket: class {} };
  for (const missing of ["apiKey", "token"]) {
    assert.throws(() => new Relay({ ...options, [missing]: undefined }), (e) => e instanceof RelayError && e.code === "bad_input");
  }
  assert.throws(() => new Relay({ ...options, url: "ftp://x" }), { code: "bad_input" });
});

test("a relay that never answers the login is given up after the connect time", async () => {
  const { clock, sockets, states } = setUp();
  await settle();
  await clock.advance(TIMING.connect - 1);
  assert.equal(states.at(-1).state, "connecting");
  await clock.advance(1);
  assert.equal(states.at(-1).state, "waiting");
  assert.ok(sockets[0].closed);
});

test("a WebSocket class that throws is a failed try, not an exception", async () => {
  const { states } = setUp({ WebSocket: class { constructor() { throw new Error("mixed content"); } } });
  await settle();
  assert.equal(states.at(-1).state, "waiting");
  assert.equal(states.at(-1).error.message, "mixed content");
});

test("a state listener that closes at once leaves nothing behind", async () => {
  const { relay, clock, sockets } = setUp();
  relay.watch(CID);
  relay.on("state", ({ state }) => state === "open" && relay.close());
  await settle();
  sockets[0].accept();
  assert.equal(relay.state, "closed");
  assert.equal(sockets[0].of("call.watch").length, 0);
  assert.equal(clock.armed, 0);
});

test("a call watched inside the open listener is asked for once", async () => {
  const { relay, sockets } = setUp();
  relay.on("state", ({ state }) => state === "open" && relay.watch(CID));
  await settle();
  sockets[0].accept();
  assert.equal(sockets[0].of("call.watch").length, 1);
});

// --- waiting ------------------------------------------------------------------------------------

test("the wait is full jitter under a doubling, capped bound, above the close code's floor", () => {
  const { backoffBase: base, backoffMax: max } = TIMING;
  for (let attempt = 0; attempt < 40; attempt += 1) {
    const bound = Math.min(max, base * 2 ** attempt);
    assert.equal(retryDelay(attempt, () => 0), 0);
    assert.ok(retryDelay(attempt, () => 0.999999) < bound);
    assert.equal(retryDelay(attempt, () => 0.5), bound / 2);
    assert.equal(retryDelay(attempt, () => 0.5, TIMING, 5_000), 5_000 + bound / 2);
  }
});

test("after a connection that stood, the origin is no longer suspected", async () => {
  const { clock, sockets, states } = setUp();
  await settle();
  sockets[0].accept();
  sockets[0].cut(1006);
  assert.equal(states.at(-1).reason, "the connection was cut");
  await clock.advance(TIMING.backoffMax);
  sockets.at(-1).cut(1006);
  assert.equal(states.at(-1).reason, "the relay cannot be reached");
});

test("the waiting state says when, why and after which code, and the waits grow", async () => {
  const { clock, sockets, states } = setUp();
  await settle();
  for (const expected of [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]) {
    sockets.at(-1).cut(1006);
    const { state, retryIn, retryAt, closeCode, reason } = states.at(-1);
    assert.deepEqual({ state, retryIn, closeCode }, { state: "waiting", retryIn: expected, closeCode: 1006 });
    assert.equal(retryAt, clock.now() + expected);
    assert.equal(reason, "the relay cannot be reached, or does not allow this page");
    const before = sockets.length;
    await clock.advance(expected - 1);
    assert.equal(sockets.length, before);
    await clock.advance(1);
    assert.equal(sockets.length, before + 1);
  }
});

test("only a connection that stayed up makes the waits short again", async () => {
  const { clock, sockets, states } = setUp();
  await settle();
  sockets[0].cut();
  await clock.advance(250);
  sockets[1].accept();
  sockets[1].cut();
  assert.equal(states.at(-1).retryIn, 500);
  await clock.advance(500);
  sockets[2].accept();
  await clock.advance(TIMING.stable);
  sockets[2].cut();
  assert.equal(states.at(-1).retryIn, 250);
});

test("online, becoming visible and connect() end the wait at once", async () => {
  for (const wake of [(w) => w.window.fire("online"), (w) => w.document.fire("visibilitychange"), (w) => w.relay.connect()]) {
    const world = setUp();
    await settle();
    world.sockets[0].cut();
    wake(world);
    await settle();
    assert.equal(world.sockets.length, 2);
    await world.clock.advance(1000); // the old retry timer is gone
    assert.equal(world.sockets.length, 2);
  }
});

test("a page that becomes hidden does not dial", async () => {
  const { document, sockets } = setUp();
  await settle();
  sockets[0].cut();
  document.visibilityState = "hidden";
  document.fire("visibilitychange");
  await settle();
  assert.equal(sockets.length, 1);
});

// --- alive? -------------------------------------------------------------------------------------

test("silence is asked after, and a dead peer is left after 30 s", async () => {
  const { clock, sockets, states } = await setUpWatching();
  await clock.advance(TIMING.ping);
  assert.equal(sockets[0].of("health.check").length, 1);
  await clock.advance(TIMING.silence - TIMING.ping - 1);
  assert.equal(states.at(-1).state, "open");
  await clock.advance(1);
  assert.equal(states.at(-1).state, "waiting");
  assert.equal(states.at(-1).reason, "nothing heard for 30 s");
});

test("any frame keeps the connection, and no question is asked of a relay that speaks", async () => {
  const { clock, sockets, relay } = await setUpWatching();
  for (let i = 0; i < 20; i += 1) {
    await clock.advance(20_000);
    sockets[0].say({ type: "health.check" });
  }
  assert.equal(relay.state, "open");
  assert.equal(sockets.length, 1);
  assert.equal(sockets[0].of("health.check").length, 0);
});

test("after waking up an open connection is tested, and left if it does not answer", async () => {
  const { clock, sockets, relay, document } = await setUpWatching();
  document.fire("visibilitychange");
  assert.equal(sockets[0].of("health.check").length, 1);
  sockets[0].say({ type: "health.check" });
  await clock.advance(TIMING.probe);
  assert.equal(relay.state, "open");
  document.fire("visibilitychange");
  await clock.advance(TIMING.probe);
  assert.equal(relay.state, "waiting");
});

// --- close codes --------------------------------------------------------------------------------

test("each close code has its action", () => {
  const table = {
    1000: "retry", 1001: "retry", 1002: "retry", 1003: "retry", 1006: "retry", 1007: "retry", 1009: "retry",
    1011: "retry", 1012: "retry", 1013: "retry", 4001: "token", 4002: "retry", 4003: "retry", 4004: "stop",
  };
  for (const [code, action] of Object.entries(table)) assert.equal(adviseClose(Number(code)).action, action, code);
  const expired = RelayError.from(errorBody(40, 401));
  assert.equal(adviseClose(4004, expired).action, "token");
  assert.equal(adviseClose(1006, RelayError.from(errorBody(43, 401, "bad signature"))).reason, "bad signature");
});

test("every code that says retry leads to another dial", async () => {
  for (const code of [1000, 1001, 1002, 1003, 1006, 1007, 1009, 1011, 1012, 1013, 4002, 4003]) {
    const world = await setUpWatching();
    const socket = await reconnect(world, code);
    assert.equal(socket, world.sockets[1], String(code));
    assert.equal(world.relay.state, "open", String(code));
  }
});

test("4003 waits at least five seconds, whatever the dice say", async () => {
  const { clock, sockets, world, states } = await setUpWatching();
  world.random = 0;
  sockets[0].cut(4003);
  assert.equal(states.at(-1).retryIn, 5_000);
  await clock.advance(4_999);
  assert.equal(sockets.length, 1);
});

test("4004 with a refusal stops, reports it and rejects what waits", async () => {
  const { relay, clock, sockets, states } = setUp();
  await settle();
  const waiting = relay.send(CID, { a: 1 });
  sockets[0].onopen();
  sockets[0].say({ type: "connection.error", error: errorBody(43, 401, "bad signature") });
  sockets[0].cut(4004);
  const { state, error, closeCode, reason } = states.at(-1);
  assert.deepEqual({ state, closeCode, reason }, { state: "closed", closeCode: 4004, reason: "bad signature" });
  assert.deepEqual([error.code, error.status], [43, 401]);
  await assert.rejects(waiting, { name: "RelayError", code: 43, outcome: "unsent" });
  await assert.rejects(relay.send(CID, {}), { code: "closed" });
  await clock.advance(60_000);
  assert.equal(sockets.length, 1);
  assert.equal(clock.armed, 0);
});

test("4004 without a reason stops as well", async () => {
  const { sockets, states } = await setUpWatching();
  sockets[0].cut(4004);
  assert.deepEqual([states.at(-1).state, states.at(-1).closeCode], ["closed", 4004]);
});

test("an event that looks like a connection.error is not one", async () => {
  const world = await setUpWatching();
  world.sockets[0].say({ type: "connection.error", call_cid: CID, error: errorBody(43, 401) });
  await reconnect(world, 1006);
  assert.equal(world.relay.state, "open");
});

test("close() ends everything, and connect() begins again with the same calls", async () => {
  const { relay, clock, sockets, window, call } = await setUpWatching();
  sockets[0].event(1);
  relay.close();
  assert.equal(clock.armed, 0);
  window.fire("online");
  await settle();
  assert.equal(sockets.length, 1);
  relay.connect();
  await settle();
  sockets[1].accept();
  assert.deepEqual(sockets[1].last("call.watch").since, { epoch: "e1", offset: 1 });
  assert.equal(call.state, "pending");
});

// --- tokens -------------------------------------------------------------------------------------

test("an expired token is asked for again, by 4001 and by a refusal with code 40", async () => {
  const given = [];
  const tokenProvider = async () => given.push(1) && `t${given.length}`;
  const { clock, sockets, relay } = setUp({ tokenProvider });
  await settle();
  sockets[0].accept();
  assert.equal(sockets[0].received[0].token, "t1");
  sockets[0].cut(4001);
  await clock.advance(1000);
  sockets[1].onopen();
  assert.equal(sockets[1].received[0].token, "t2");
  sockets[1].say({ type: "connection.error", error: errorBody(40, 401, "token expired") });
  sockets[1].cut(4004);
  await clock.advance(2000);
  sockets[2].accept();
  assert.equal(sockets[2].received[0].token, "t3");
  assert.equal(relay.state, "open");
});

test("a cut does not ask for a new token", async () => {
  let asked = 0;
  const world = await setUpWatching({ tokenProvider: async () => `t${(asked += 1)}` });
  await reconnect(world);
  assert.equal(asked, 1);
});

test("a provider may bring another user with the token", async () => {
  const { sockets } = setUp({ tokenProvider: () => ({ token: "t9", user: { id: "guest-1", name: "G" } }) });
  await settle();
  sockets[0].onopen();
  assert.deepEqual(sockets[0].received[0].user_details, { id: "guest-1", name: "G" });
});

test("an expired fixed token closes with code 40; refreshToken brings the connection back", async () => {
  for (const expire of [(s) => s.cut(4001), (s) => { s.say({ type: "connection.error", error: errorBody(40, 401) }); s.cut(4004); }]) {
    const { relay, sockets, states } = await setUpWatching();
    expire(sockets[0]);
    assert.equal(states.at(-1).state, "closed");
    assert.equal(states.at(-1).error.code, 40);
    await relay.refreshToken("t2");
    await settle();
    sockets[1].accept();
    assert.equal(sockets[1].received[0].token, "t2");
    assert.equal(relay.state, "open");
  }
});

test("a provider that fails, hangs or gives nothing is tried again later", async () => {
  const answers = [() => Promise.reject(new Error("down")), () => new Promise(() => {}), () => ({}), () => "t4"];
  const { relay, clock, sockets, states } = setUp({ tokenProvider: () => answers.shift()() });
  await settle();
  assert.equal(states.at(-1).error.message, "down");
  await clock.advance(TIMING.token + 2_000);
  assert.ok(states.some(({ error }) => error?.code === "timeout"));
  await clock.advance(30_000);
  sockets.at(-1).accept();
  assert.equal(relay.state, "open");
});

test("refreshToken on an open connection is a command with an answer", async () => {
  const world = await setUpWatching();
  const { relay, sockets, clock } = world;
  const done = relay.refreshToken("t2");
  const frame = sockets[0].last("token.refresh");
  assert.equal(frame.token, "t2");
  sockets[0].say({ type: "token.refreshed", id: frame.id });
  assert.equal(await done, undefined);
  const refused = relay.refreshToken("bad");
  sockets[0].refuse(sockets[0].last("token.refresh"), 43, 401);
  await assert.rejects(refused, { code: 43, status: 401 });
  const late = relay.refreshToken("slow");
  const lateCheck = assert.rejects(late, { code: "timeout" });
  await clock.advance(TIMING.command);
  await lateCheck;
  const socket = await reconnect(world);
  assert.equal(socket.received[0].token, "t2"); // neither the refused nor the unanswered one
});

test("a token refreshed while the old one expires is used, not thrown away", async () => {
  const { relay, sockets, clock } = await setUpWatching();
  const done = relay.refreshToken("t2");
  sockets[0].cut(4001);
  await done;
  await clock.advance(1000);
  sockets[1].onopen();
  assert.equal(sockets[1].received[0].token, "t2");
});

// --- guests -------------------------------------------------------------------------------------

test("guest() posts the user anonymously and returns user and token", async () => {
  const requests = [];
  const fetch = async (url, init) => {
    requests.push({ url, ...init });
    return { ok: true, status: 201, json: async () => ({ user: { id: "guest-1-ada" }, access_token: "jwt", duration: "1ms" }) };
  };
  const got = await Relay.guest({ url: "http://relay.test", apiKey: "d&d", user: { id: "ada" }, fetch });
  assert.deepEqual(got, { user: { id: "guest-1-ada" }, token: "jwt" });
  assert.equal(requests[0].url, "http://relay.test/video/guest?api_key=d%26d");
  assert.equal(requests[0].headers["stream-auth-type"], "anonymous");
  assert.deepEqual(JSON.parse(requests[0].body), { user: { id: "ada" } });
});

test("guest() turns every failure into a RelayError", async () => {
  const ask = (fetch) => Relay.guest({ url: "http://relay.test", apiKey: "d", user: {}, fetch });
  const refusal = { ok: false, status: 401, json: async () => errorBody(2, 401, "unknown key") };
  await assert.rejects(ask(async () => refusal), { name: "RelayError", code: 2, status: 401, message: "unknown key" });
  const page = { ok: false, status: 502, json: async () => JSON.parse("<html>") };
  await assert.rejects(ask(async () => page), { name: "RelayError", status: 502 });
  await assert.rejects(ask(async () => { throw new TypeError("failed to fetch"); }), { name: "RelayError", code: "network" });
});

// --- watching -----------------------------------------------------------------------------------

test("events reach `event`, their own type and the relay, in order, and move the position", async () => {
  const { call, relay, sockets, seen } = await setUpWatching();
  const log = [];
  call.on("custom", (event) => log.push(`custom ${event.offset}`));
  call.on("position", ({ offset }) => log.push(`position ${offset}`));
  relay.on("event", (event) => log.push(`relay ${event.offset}`));
  sockets[0].event(1);
  sockets[0].event(2);
  assert.deepEqual(log, ["custom 1", "position 1", "relay 1", "custom 2", "position 2", "relay 2"]);
  assert.deepEqual(seen, [{ n: 1, missed: false }, { n: 2, missed: false }]);
  assert.deepEqual(call.position, { epoch: "e1", offset: 2 });
});

test("an event type that is spelt like a listener's name is only an event", async () => {
  const { call, sockets, seen } = await setUpWatching();
  call.on("gap", () => assert.fail("not a gap"));
  sockets[0].event(1, { type: "gap" });
  assert.equal(seen.length, 1);
});

test("after a reconnect every call is watched again from its last position", async () => {
  const world = await setUpWatching();
  const { relay, sockets } = world;
  relay.watch("default:other", { since: { epoch: "x", offset: 9 } });
  assert.deepEqual(sockets[0].last("call.watch").since, { epoch: "x", offset: 9 });
  sockets[0].event(1);
  sockets[0].event(2);
  const socket = await reconnect(world);
  const since = Object.fromEntries(socket.of("call.watch").map((frame) => [frame.call_cid, frame.since]));
  assert.deepEqual(since, { [CID]: { epoch: "e1", offset: 2 }, "default:other": { epoch: "x", offset: 9 } });
});

test("what was missed is delivered, marked and counted, and then live goes on unmarked", async () => {
  const world = await setUpWatching();
  world.sockets[0].event(1);
  const socket = await reconnect(world);
  socket.watching({ offset: 3, recovered: true });
  [2, 3, 4].forEach((n) => socket.event(n));
  assert.deepEqual(world.seen.slice(1), [{ n: 2, missed: true }, { n: 3, missed: true }, { n: 4, missed: false }]);
  assert.deepEqual(world.recovered, [{ count: 2, from: { epoch: "e1", offset: 1 }, to: { epoch: "e1", offset: 3 } }]);
  assert.deepEqual(world.gaps, []);
});

test("a reconnect that missed nothing says so", async () => {
  const world = await setUpWatching();
  world.sockets[0].event(1);
  const socket = await reconnect(world);
  socket.watching({ epoch: "e2", offset: 1, recovered: true });
  assert.equal(world.recovered[0].count, 0);
  assert.deepEqual(world.call.position, { epoch: "e2", offset: 1 });
});

test("each position is told once, also at the end of a replay", async () => {
  const world = await setUpWatching();
  world.sockets[0].event(1);
  const told = [];
  world.call.on("position", ({ offset }) => told.push(offset));
  const socket = await reconnect(world);
  socket.watching({ offset: 3, recovered: true });
  [2, 3].forEach((n) => socket.event(n));
  (await reconnect(world)).watching({ offset: 3, recovered: true });
  assert.deepEqual(told, [2, 3]);
});

test("a second cut in the middle of the replay continues where delivery stopped", async () => {
  const world = await setUpWatching();
  world.sockets[0].event(1);
  const second = await reconnect(world);
  second.watching({ offset: 5, recovered: true });
  second.event(2);
  const third = await reconnect(world);
  assert.deepEqual(third.last("call.watch").since, { epoch: "e1", offset: 2 });
  third.watching({ offset: 5, recovered: true });
  [3, 4, 5].forEach((n) => third.event(n));
  assert.deepEqual(world.seen.map(({ n }) => n), [1, 2, 3, 4, 5]);
  assert.equal(world.recovered.length, 1);
});

test("recovered:false, or no word about it, is a gap, and live goes on from the new position", async () => {
  for (const recovered of [false, undefined]) {
    const world = await setUpWatching();
    world.sockets[0].event(1);
    const socket = await reconnect(world);
    socket.watching({ epoch: "e2", offset: 0, recovered });
    assert.deepEqual(world.gaps, [{ from: { epoch: "e1", offset: 1 }, to: { epoch: "e2", offset: 0 } }]);
    socket.event(1, { epoch: "e2", event_id: "other" });
    assert.deepEqual(world.seen.at(-1), { n: 1, missed: false });
    assert.deepEqual(world.call.position, { epoch: "e2", offset: 1 });
  }
});

test("call.position reports a gap on the live connection", async () => {
  const { sockets, gaps, call, seen } = await setUpWatching();
  sockets[0].say({ type: "call.position", call_cid: CID, epoch: "e2", offset: 40, recovered: false });
  assert.deepEqual(gaps, [{ from: { epoch: "e1", offset: 0 }, to: { epoch: "e2", offset: 40 } }]);
  sockets[0].event(41, { epoch: "e2" });
  assert.deepEqual([call.position.offset, seen.length], [41, 1]);
});

test("a jump of offsets is never silent, even if the relay did not notice", async () => {
  const { sockets, gaps, seen } = await setUpWatching();
  sockets[0].event(1);
  sockets[0].event(4);
  assert.deepEqual(gaps, [{ from: { epoch: "e1", offset: 1 }, to: { epoch: "e1", offset: 3 } }]);
  assert.deepEqual(seen.map(({ n }) => n), [1, 4]);
});

test("repeats are dropped by position", async () => {
  const { sockets, seen } = await setUpWatching();
  [1, 2].forEach((n) => sockets[0].event(n));
  sockets[0].event(2, { event_id: "another" });
  sockets[0].event(1, { event_id: undefined });
  assert.deepEqual(seen.map(({ n }) => n), [1, 2]);
});

test("repeats are dropped by the sender's event_id, also when volatile or under another epoch", async () => {
  const { sockets, seen, call } = await setUpWatching();
  sockets[0].event(1, { event_id: "x" });
  sockets[0].event(2, { event_id: "x", epoch: "e2" });
  assert.deepEqual(call.position, { epoch: "e2", offset: 2 }); // dropped, but passed
  const volatile = { epoch: undefined, offset: undefined, event_id: "v" };
  sockets[0].event(7, volatile);
  sockets[0].event(7, volatile);
  assert.deepEqual(seen.map(({ n }) => n), [1, 7]);
});

test("what a user has sent suppresses nothing that a server sends in its name under the same event_id", async () => {
  const { sockets, call } = await setUpWatching();
  const offsets = [];
  call.on("event", ({ offset }) => offsets.push(offset));
  sockets[0].event(undefined, { epoch: undefined, event_id: "pay-17" });
  sockets[0].event(1, { event_id: "pay-17" });
  sockets[0].event(2, { event_id: "pay-17" });
  sockets[0].event(2, { event_id: "pay-17", epoch: "e2" });
  assert.deepEqual(offsets, [undefined, 1, 2]);
});

test("nobody can suppress another's event with the same event_id", async () => {
  const { sockets, seen } = await setUpWatching();
  sockets[0].event(1, { event_id: "x", user: { id: "mallory" } });
  sockets[0].event(2, { event_id: "x", user: { id: "bob" } });
  // two webhooks without a user: in one epoch the offset tells them apart, across epochs the id does
  sockets[0].event(3, { event_id: "h", user: undefined, type: "call.updated" });
  sockets[0].event(4, { event_id: "h", user: undefined, type: "call.updated" });
  sockets[0].event(5, { event_id: "h", user: undefined, type: "call.updated", epoch: "e2" });
  assert.deepEqual(seen.map(({ n }) => n), [1, 2, 3, 4]);
});

test("the memory of event ids is bounded", async () => {
  const { sockets, seen } = await setUpWatching();
  const volatile = (id) => sockets[0].event(0, { epoch: undefined, offset: undefined, event_id: id });
  for (let i = 0; i <= 2048; i += 1) volatile(`v${i}`);
  volatile("v2048"); // remembered
  assert.equal(seen.length, 2049);
  volatile("v0"); // forgotten
  assert.equal(seen.length, 2050);
});

test("events before the answer to the watch, and of calls not watched, are not delivered", async () => {
  const { relay, sockets } = setUp();
  const events = [];
  const call = relay.watch(CID);
  call.on("event", (event) => events.push(event));
  relay.on("event", (event) => events.push(event));
  await settle();
  sockets[0].accept();
  sockets[0].event(1);
  sockets[0].event(1, { call_cid: "default:other" });
  assert.equal(events.length, 0);
  sockets[0].say({ type: "user.updated", user: { id: "ada" } }); // about no call: the relay's listeners
  assert.equal(events.length, 1);
});

test("watchers are kept and told", async () => {
  const { call, sockets } = await setUpWatching();
  const told = [];
  call.on("watchers", (watchers) => told.push(watchers));
  sockets[0].say({ type: "call.watchers", call_cid: CID, count: 2, users: [{ id: "ada" }, { id: "bob" }] });
  assert.equal(told[0].count, 2);
  assert.equal(call.watchers.users[1].id, "bob");
});

test("a watch that is refused says so once and is not asked again", async () => {
  const world = await setUpWatching();
  const other = world.relay.watch("default:secret");
  const errors = [];
  other.on("error", (error) => errors.push(error));
  world.sockets[0].refuse(world.sockets[0].last("call.watch"), 17, 403);
  assert.deepEqual([other.state, errors[0].code], ["refused", 17]);
  const socket = await reconnect(world);
  assert.deepEqual(socket.of("call.watch").map((frame) => frame.call_cid), [CID]);
});

test("a watch that failed for a while, or was not answered, is asked again", async () => {
  const { relay, sockets, clock } = setUp();
  const watched = relay.watch(CID);
  await settle();
  sockets[0].accept();
  sockets[0].refuse(sockets[0].last("call.watch"), -1, 503);
  await clock.advance(1_000);
  assert.equal(sockets[0].of("call.watch").length, 2);
  await clock.advance(TIMING.command + 2_000);
  assert.equal(sockets[0].of("call.watch").length, 3);
  sockets[0].watching();
  assert.equal(watched.state, "watching");
});

test("the same call is watched once; unwatch ends it, and it can be watched anew", async () => {
  const world = await setUpWatching();
  const { relay, sockets, call, seen } = world;
  assert.equal(relay.watch(CID), call);
  call.unwatch();
  call.unwatch();
  assert.equal(sockets[0].of("call.unwatch").length, 1);
  const again = relay.watch(CID);
  assert.notEqual(again, call);
  sockets[0].event(1);
  assert.equal(seen.length, 0);
  sockets[0].watching({ offset: 1 });
  assert.deepEqual([again.state, call.state], ["watching", "ended"]);
});

test("what was asked for a call that was left and is watched anew is answered to nobody", async () => {
  const { relay, sockets: [socket], clock } = await setUpWatching();
  const errors = [];
  relay.on("error", (error) => errors.push(error));
  relay.watch("default:other").unwatch();
  const late = socket.last("call.watch");
  const anew = relay.watch("default:other");
  const asked = socket.last("call.watch");
  assert.notEqual(asked.id, late.id);
  socket.refuse(asked, -1, 503);
  socket.refuse(late, -1, 503);
  await clock.advance(TIMING.backoffBase * 2);
  assert.equal(socket.of("call.watch").length, 4);
  socket.watching();
  assert.equal(anew.state, "watching");
  assert.deepEqual(errors, []);
});

test("a call that is left while it waits to be asked for again leaves no timer behind", async () => {
  const { relay, sockets: [socket], clock } = await setUpWatching();
  const { armed } = clock;
  const other = relay.watch("default:other");
  socket.refuse(socket.last("call.watch"), -1, 503);
  other.unwatch();
  assert.equal(clock.armed, armed);
});

test("the number of calls is bounded", () => {
  const { relay } = setUp();
  for (let i = 0; i < 1000; i += 1) relay.watch(`default:c${i}`);
  assert.throws(() => relay.watch("default:more"), { name: "RelayError", code: "queue_full" });
});

// --- sending ------------------------------------------------------------------------------------

test("send resolves with id and position", async () => {
  const { call, sockets, relay } = await setUpWatching();
  const sent = call.send({ "render-animation": "balloons" });
  const frame = sockets[0].last("call.send");
  assert.deepEqual(frame, { type: "call.send", id: frame.id, call_cid: CID, custom: { "render-animation": "balloons" }, volatile: false, event_id: "new-1" });
  sockets[0].sent(frame);
  assert.deepEqual(await sent, { event_id: "new-1", epoch: "e1", offset: 1 });
  assert.equal(relay.pending, 0);
});

test("a send before the connection waits for it, after the watches", async () => {
  const { relay, sockets } = setUp();
  relay.watch(CID);
  relay.send(CID, { a: 1 }, { eventId: "mine" });
  await settle();
  sockets[0].accept();
  assert.deepEqual(sockets[0].received.slice(1).map(({ type }) => type), ["call.watch", "call.send"]);
  assert.equal(sockets[0].last("call.send").event_id, "mine");
});

test("a send whose answer was lost is repeated under the same event_id, in order", async () => {
  const world = await setUpWatching();
  const sends = [world.call.send({ a: 1 }), world.call.send({ a: 2 })];
  const before = world.sockets[0].of("call.send");
  const socket = await reconnect(world);
  const repeated = socket.of("call.send");
  assert.deepEqual(repeated.map((frame) => frame.event_id), before.map((frame) => frame.event_id));
  repeated.forEach((frame, i) => socket.sent(frame, { epoch: "e1", offset: i + 1 }));
  assert.deepEqual((await Promise.all(sends)).map(({ offset }) => offset), [1, 2]);
  await reconnect(world);
  assert.equal(world.sockets[2].of("call.send").length, 0);
});

test("a volatile send is never repeated: its answer lost, the outcome is unknown", async () => {
  const world = await setUpWatching();
  const sent = world.call.send({ a: 1 }, { volatile: true });
  const check = assert.rejects(sent, { code: "disconnected", outcome: "unknown", eventId: "new-1" });
  const socket = await reconnect(world);
  await check;
  assert.equal(socket.of("call.send").length, 0);
});

test("a send has a deadline, and says whether it may have been published", async () => {
  const { call, clock, sockets, relay } = await setUpWatching();
  const answered = assert.rejects(call.send({ a: 1 }), { code: "timeout", outcome: "unknown" });
  sockets[0].cut();
  const unsent = assert.rejects(call.send({ a: 2 }), { code: "timeout", outcome: "unsent" });
  await clock.advance(TIMING.send);
  await Promise.all([answered, unsent]);
  assert.equal(relay.pending, 0);
});

test("a refused send rejects with the relay's code; a temporary refusal is tried again under the same id", async () => {
  const { call, sockets, clock } = await setUpWatching();
  const big = assert.rejects(call.send({ a: 1 }), { code: 22, status: 413, outcome: "refused" });
  sockets[0].refuse(sockets[0].last("call.send"), 22, 413);
  await big;
  for (const [code, status] of [[-1, 503], [9, 429]]) {
    const sent = call.send({ a: 2 });
    const first = sockets[0].last("call.send");
    sockets[0].refuse(first, code, status);
    await clock.advance(1_000);
    const second = sockets[0].last("call.send");
    assert.equal(second.event_id, first.event_id);
    sockets[0].sent(second);
    await sent;
  }
});

test("the queue of sends is bounded, and the bound is said at once", async () => {
  const { relay } = setUp();
  for (let i = 0; i < 256; i += 1) relay.send(CID, {}).catch(() => {});
  await assert.rejects(relay.send(CID, {}), { code: "queue_full", outcome: "unsent" });
  assert.equal(relay.pending, 256);
  relay.close();
  assert.equal(relay.pending, 0);
});

test("what cannot be sent is refused here, before it costs the connection", async () => {
  const { call } = await setUpWatching();
  const circular = {};
  circular.self = circular;
  await assert.rejects(call.send(circular), { code: "bad_input" });
  await assert.rejects(call.send({ text: "x".repeat(70_000) }), { code: "bad_input" });
});

test("a storm of sends is paced below the relay's limit and all arrive", async () => {
  const { call, sockets, clock } = await setUpWatching();
  for (let i = 0; i < 200; i += 1) call.send({ i }).catch(() => {});
  assert.ok(sockets[0].received.length <= 1 + 80);
  await clock.advance(1_000);
  assert.ok(sockets[0].received.length <= 1 + 80 + 17);
  await clock.advance(8_000);
  assert.deepEqual(sockets[0].of("call.send").map(({ custom }) => custom.i), Array.from({ length: 200 }, (_, i) => i));
});

test("event ids are random and long", () => {
  assert.match(newEventId(), /^[0-9a-f]{32}$/);
  assert.notEqual(newEventId(), newEventId());
});

// --- hostile surroundings -----------------------------------------------------------------------

test("a listener that throws or rejects is reported and disturbs neither the others nor the client", async () => {
  const { relay, call, sockets, errors, clock, seen } = await setUpWatching();
  call.on("event", () => { throw new Error("mine"); });
  call.on("event", async () => { throw new Error("async"); });
  relay.on("state", () => { throw new Error("state"); });
  let reached = 0;
  call.on("event", () => (reached += 1));
  sockets[0].event(1);
  sockets[0].cut();
  await clock.advance(1_000);
  assert.deepEqual([reached, seen.length, sockets.length], [1, 1, 2]);
  assert.deepEqual(new Set(errors.map(({ message }) => message)), new Set(["mine", "async", "state"]));
});

test("frames that are no frames change nothing", async () => {
  const { relay, sockets, seen } = await setUpWatching();
  const odd = ["not json", "null", "3", "[]", "[1]", "{}", '{"type":7}', '{"type":"__proto__"}', '{"type":"constructor"}',
    '{"type":"call.watching"}', '{"type":"call.sent","id":99}', '{"type":"call.watchers"}', '{"type":"call.position"}', '{"type":"error"}'];
  odd.forEach((text) => sockets[0].say(text));
  assert.equal(relay.state, "open");
  sockets[0].event(1);
  assert.equal(seen.length, 1);
});

test("an error frame that answers nothing reaches the relay's listeners", async () => {
  const { relay, sockets } = await setUpWatching();
  const errors = [];
  relay.on("error", (error) => errors.push(error));
  sockets[0].say({ type: "error", error: errorBody(4, 400, "unknown command") });
  assert.equal(errors[0].message, "unknown command");
});

test("a listener ends when its unsubscribe function is called, and the same function may listen twice", async () => {
  const { call, sockets } = await setUpWatching();
  let count = 0;
  const fn = () => (count += 1);
  const stop = call.on("event", fn);
  call.on("event", fn);
  sockets[0].event(1);
  stop();
  sockets[0].event(2);
  assert.equal(count, 3);
  assert.throws(() => call.on("event", "no"), TypeError);
});

test("late frames and closes of an abandoned socket are nobody's", async () => {
  const world = await setUpWatching();
  await world.clock.advance(TIMING.silence);
  const [old] = world.sockets;
  old.event(1);
  old.cut(4004);
  assert.equal(world.relay.state, "waiting");
  assert.equal(world.seen.length, 0);
});

test("after a hundred reconnects no timer is left over", async () => {
  const world = await setUpWatching();
  const armed = world.clock.armed;
  for (let i = 0; i < 100; i += 1) (await reconnect(world)).watching({ recovered: true });
  assert.equal(world.clock.armed, armed);
});
